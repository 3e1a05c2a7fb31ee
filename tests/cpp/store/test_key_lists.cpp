#include "store/key_lists.h"

#include <vector>

#include "test.h"

using flash_moe::InternalError;
using flash_moe::store::expert_key;
using flash_moe::store::ExpertKey;
using flash_moe::store::key_expert;
using flash_moe::store::key_layer;
using flash_moe::store::KeyLists;
using flash_moe::store::KeyTable;

namespace {

std::vector<ExpertKey> cold_to_hot(const KeyLists& lists, uint32_t list) {
  std::vector<ExpertKey> keys;
  for (uint32_t node = lists.back(list); node != KeyLists::none; node = lists.towards_front(node)) {
    keys.push_back(lists.key(node));
  }
  return keys;
}

}  // namespace

TEST(keys_hold_layer_and_expert) {
  const ExpertKey key = expert_key(59, 511);
  CHECK(key_layer(key) == 59 && key_expert(key) == 511);
}

TEST(a_table_knows_what_was_set_and_nothing_else) {
  KeyTable table;
  CHECK(table.find(expert_key(3, 4)) == KeyTable::none);
  table.set(expert_key(3, 4), 7);
  CHECK(table.find(expert_key(3, 4)) == 7);
  CHECK(table.find(expert_key(4, 3)) == KeyTable::none);
  CHECK(table.find(expert_key(3, 3)) == KeyTable::none);
  CHECK(table.find(expert_key(3, 5)) == KeyTable::none);
}

TEST(lists_keep_order_through_moves_and_erasure) {
  KeyLists lists(2);
  for (ExpertKey key = 1; key <= 4; ++key) lists.insert(key, 0, true);
  lists.insert(5, 0, false);
  CHECK((cold_to_hot(lists, 0) == std::vector<ExpertKey>{5, 1, 2, 3, 4}));
  lists.move(lists.find(2), 0, true);
  lists.move(lists.find(4), 1, false);
  CHECK((cold_to_hot(lists, 0) == std::vector<ExpertKey>{5, 1, 3, 2}));
  CHECK((cold_to_hot(lists, 1) == std::vector<ExpertKey>{4}));
  CHECK(lists.list(lists.find(4)) == 1);
  lists.erase(1);
  lists.erase(4);
  CHECK((cold_to_hot(lists, 0) == std::vector<ExpertKey>{5, 3, 2}));
  CHECK(lists.size(0) == 3 && lists.size(1) == 0);
  const uint32_t reused = lists.insert(9, 1, true);
  CHECK(lists.find(9) == reused && !lists.mark(reused));
  CHECK((cold_to_hot(lists, 1) == std::vector<ExpertKey>{9}));
}

TEST(inserting_twice_or_erasing_nothing_is_our_defect) {
  KeyLists lists(1);
  lists.insert(1, 0, true);
  CHECK_THROWS(lists.insert(1, 0, true), InternalError, "none");
  CHECK_THROWS(lists.erase(2), InternalError, "none");
}
