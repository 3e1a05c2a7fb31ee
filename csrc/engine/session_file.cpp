#include "engine/session_file.h"

#include <algorithm>
#include <cstring>

#include "flash_moe/error.h"
#include "io/file.h"
#include "io/output_file.h"

namespace flash_moe::engine {
namespace {

constexpr char kMagic[8] = {'F', 'M', 'S', 'E', 'S', 'S', '0', '1'};
constexpr uint64_t kSeed = 0x9e3779b97f4a7c15u;

class Writer {
 public:
  explicit Writer(const std::string& path) : file_(path) {}
  void put(const void* data, size_t bytes) {
    file_.write_exact(data, bytes);
    hash_ = mix_hash(hash_, data, bytes);
  }
  void put_u64(uint64_t value) { put(&value, sizeof value); }
  void finish() {
    put_u64(hash_);
    file_.commit();
  }

 private:
  io::OutputFile file_;
  uint64_t hash_ = kSeed;
};

class Reader {
 public:
  explicit Reader(const std::string& path) : file_(path) {}
  void get(void* data, size_t bytes, const char* what) {
    if (bytes > file_.size_bytes() - offset_) fail(std::string("ends inside ") + what);
    file_.read_exact(data, bytes, offset_);
    offset_ += bytes;
    hash_ = mix_hash(hash_, data, bytes);
  }
  uint64_t get_u64(const char* what) {
    uint64_t value = 0;
    get(&value, sizeof value, what);
    return value;
  }
  void finish() {
    const uint64_t want = hash_;
    if (get_u64("the checksum") != want) fail("checksum does not match: the file is damaged");
    if (offset_ != file_.size_bytes()) fail("has bytes after its end");
  }
  [[noreturn]] void fail(const std::string& why) const { throw FormatError("session " + file_.path() + ": " + why); }

 private:
  io::File file_;
  uint64_t offset_ = 0;
  uint64_t hash_ = kSeed;
};

}  // namespace

uint64_t mix_hash(uint64_t seed, const void* data, size_t bytes) {
  constexpr uint64_t kMultiplier = 0xff51afd7ed558ccdu;
  const auto* from = static_cast<const uint8_t*>(data);
  uint64_t hash = seed ^ (bytes * kMultiplier);
  for (; bytes >= 8; from += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, from, 8);
    hash = (hash ^ word) * kMultiplier;
    hash ^= hash >> 32;
  }
  for (; bytes > 0; ++from, --bytes) hash = (hash ^ *from) * kMultiplier;
  return hash ^ (hash >> 29);
}

void write_session(const std::string& path, const SessionIdentity& identity, std::span<const int32_t> tokens,
                   backend::Sequence& sequence) {
  Writer out(path);
  out.put(kMagic, sizeof kMagic);
  out.put_u64(identity.fingerprint);
  out.put_u64(identity.kv_is_bf16 ? 1 : 0);
  out.put_u64(tokens.size());
  uint64_t pieces = 0;
  sequence.visit([&](const std::string&, uint8_t*, size_t) { ++pieces; });
  out.put_u64(pieces);
  if (!tokens.empty()) out.put(tokens.data(), tokens.size_bytes());
  sequence.visit([&](const std::string&, uint8_t* data, size_t bytes) {
    out.put_u64(bytes);
    if (bytes != 0) out.put(data, bytes);
  });
  out.finish();
}

std::vector<int32_t> read_session(const std::string& path, const SessionIdentity& identity,
                                  backend::Sequence& sequence) {
  Reader in(path);
  char magic[8];
  in.get(magic, sizeof magic, "the magic number");
  if (std::memcmp(magic, kMagic, sizeof magic) != 0) in.fail("is not a flash_moe session of this version");
  if (in.get_u64("the header") != identity.fingerprint)
    in.fail("was saved from another model or precision; open it with the engine that made it");
  if ((in.get_u64("the header") == 1) != identity.kv_is_bf16)
    in.fail(std::string("has a key/value cache of another dtype than this engine's ") +
            (identity.kv_is_bf16 ? "bfloat16" : "float32"));
  const uint64_t token_count = in.get_u64("the header");
  if (token_count > static_cast<uint64_t>(identity.context))
    in.fail("claims " + std::to_string(token_count) + " tokens; the model's context is " +
            std::to_string(identity.context));
  const uint64_t pieces = in.get_u64("the header");
  std::vector<int32_t> tokens(token_count);
  if (token_count != 0) in.get(tokens.data(), token_count * sizeof(int32_t), "the tokens");
  sequence.resize(static_cast<int64_t>(token_count));
  uint64_t expected = 0;
  sequence.visit([&](const std::string& name, uint8_t* data, size_t bytes) {
    ++expected;
    const uint64_t stored = in.get_u64(name.c_str());
    if (stored != bytes)
      in.fail("piece " + name + " has " + std::to_string(stored) + " bytes, wanted " + std::to_string(bytes));
    if (bytes != 0) in.get(data, bytes, name.c_str());
  });
  if (pieces != expected)
    in.fail("has " + std::to_string(pieces) + " pieces, wanted " + std::to_string(expected));
  in.finish();
  return tokens;
}

}  // namespace flash_moe::engine
