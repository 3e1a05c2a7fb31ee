#pragma once
// Doubly linked lists of expert keys over one pool of nodes, with the way from a key to its node: every step O(1).

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "store/policy.h"

namespace flash_moe::store {

// From an expert's key to a small number. Layers and experts are dense, so two arrays do what a hash would.
class KeyTable {
 public:
  static constexpr uint32_t none = UINT32_MAX;

  uint32_t find(ExpertKey key) const {
    const uint32_t layer = key_layer(key);
    const uint32_t expert = key_expert(key);
    if (layer >= rows_.size() || expert >= rows_[layer].size()) return none;
    return rows_[layer][expert];
  }
  void set(ExpertKey key, uint32_t value) {
    const uint32_t layer = key_layer(key);
    const uint32_t expert = key_expert(key);
    if (layer >= rows_.size()) rows_.resize(layer + size_t{1});
    if (expert >= rows_[layer].size()) rows_[layer].resize(expert + size_t{1}, none);
    rows_[layer][expert] = value;
  }

 private:
  std::vector<std::vector<uint32_t>> rows_;
};

// The front of a list is its hot end. A node is an index that stays the key's until `erase`.
class KeyLists {
 public:
  static constexpr uint32_t none = KeyTable::none;

  explicit KeyLists(uint32_t list_count) : sizes_(list_count, 0) {
    for (uint32_t list = 0; list < list_count; ++list) nodes_.push_back({0, list, list, list, false});
  }

  uint32_t find(ExpertKey key) const { return table_.find(key); }
  ExpertKey key(uint32_t node) const { return nodes_[node].key; }
  uint32_t list(uint32_t node) const { return nodes_[node].list; }
  size_t size(uint32_t list) const { return sizes_[list]; }
  bool mark(uint32_t node) const { return nodes_[node].mark; }
  void set_mark(uint32_t node, bool mark) { nodes_[node].mark = mark; }
  // The last node of a list, then towards the front; `none` past the end.
  uint32_t back(uint32_t list) const { return real(nodes_[list].previous); }
  uint32_t towards_front(uint32_t node) const { return real(nodes_[node].previous); }

  uint32_t insert(ExpertKey key, uint32_t list, bool at_front) {
    FM_CHECK(find(key) == none);
    uint32_t node;
    if (free_.empty()) {
      node = static_cast<uint32_t>(nodes_.size());
      nodes_.emplace_back();
    } else {
      node = free_.back();
      free_.pop_back();
    }
    nodes_[node].key = key;
    nodes_[node].mark = false;
    table_.set(key, node);
    link(node, list, at_front);
    return node;
  }
  void move(uint32_t node, uint32_t list, bool at_front) {
    unlink(node);
    link(node, list, at_front);
  }
  void erase(ExpertKey key) {
    const uint32_t node = find(key);
    FM_CHECK(node != none);
    unlink(node);
    table_.set(key, none);
    free_.push_back(node);
  }

 private:
  struct Node {
    ExpertKey key = 0;
    uint32_t next = 0;
    uint32_t previous = 0;
    uint32_t list = 0;
    bool mark = false;
  };

  uint32_t real(uint32_t node) const { return node < sizes_.size() ? none : node; }
  void unlink(uint32_t node) {
    const Node& gone = nodes_[node];
    nodes_[gone.previous].next = gone.next;
    nodes_[gone.next].previous = gone.previous;
    --sizes_[gone.list];
  }
  void link(uint32_t node, uint32_t list, bool at_front) {
    const uint32_t previous = at_front ? list : nodes_[list].previous;
    const uint32_t next = nodes_[previous].next;
    nodes_[node].previous = previous;
    nodes_[node].next = next;
    nodes_[node].list = list;
    nodes_[previous].next = node;
    nodes_[next].previous = node;
    ++sizes_[list];
  }

  std::vector<Node> nodes_;  // one ring for each list, whose head is the node of its index
  std::vector<size_t> sizes_;
  std::vector<uint32_t> free_;
  KeyTable table_;
};

}  // namespace flash_moe::store
