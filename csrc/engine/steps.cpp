// Steps of an engine: prefill of one session in chunks, one token for several, and the memory they need.
#include <algorithm>
#include <numeric>
#include <string>

#include "base/check.h"
#include "engine/engine_impl.h"

namespace flash_moe::engine {
namespace {

std::function<void()> stop_check(const Progress& progress, int64_t done, int64_t total) {
  if (!progress) return [] {};
  return [&progress, done, total] {
    if (progress(done, total)) throw CancelledError("cancelled by the caller");
  };
}

}  // namespace

void EngineImpl::check_tokens(std::span<const int32_t> tokens) const {
  if (tokens.empty()) throw ConfigError("no tokens were given; at least one is needed");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= info_.vocab)
      throw ConfigError("token " + std::to_string(tokens[i]) + " at index " + std::to_string(i) +
                        " is outside the vocabulary [0, " + std::to_string(info_.vocab) + ")");
  }
}

void EngineImpl::check_context(int64_t position, int64_t tokens) const {
  if (position + tokens > info_.context)
    throw ConfigError(std::to_string(tokens) + " tokens after " + std::to_string(position) +
                      " do not fit the model's context of " + std::to_string(info_.context));
}

uint64_t EngineImpl::sequences_bytes() const {
  uint64_t bytes = 0;
  for (const SessionImpl* session : sessions_) bytes += session->sequence_->bytes();
  return bytes;
}

// Before a step: sequences that will grow by `rows_each` get their memory, and experts give it up.
void EngineImpl::make_room(std::span<SessionImpl* const> growing, int64_t rows_each) {
  uint64_t bytes = sequences_bytes();
  for (const SessionImpl* session : growing) {
    const uint64_t after = backend_->sequence_bytes(session->sequence_->position() + rows_each);
    const uint64_t now = session->sequence_->bytes();
    if (after > now) bytes += after - now;
  }
  // The plan holds one session's bytes from the start: smaller sums change nothing.
  const int64_t slots = slots_beside(plan_, budget_, std::max(bytes, plan_.sequence_bytes));
  if (slots < plan_.slots_min)
    throw ConfigError("memory=" + std::to_string(plan_.memory_bytes) + " bytes is used up: sessions need " +
                      std::to_string(bytes) + " bytes and the least for experts is " +
                      std::to_string(plan_.slots_min) + " slots of " + std::to_string(budget_.slot_bytes) +
                      "; close sessions or raise the bound");
  const auto capacity = static_cast<int64_t>(store_->capacity());
  if (slots < capacity || slots > capacity) store_->set_capacity(static_cast<size_t>(slots));
}

void EngineImpl::run_step(const backend::Step& step, std::span<const int32_t> logit_rows, float* logits,
                          const std::function<void()>& check) {
  const uint64_t begin_ns = PhaseClock::now_ns();
  forward_->run(step, logit_rows, logits, check);
  const uint64_t ns = PhaseClock::now_ns() - begin_ns;
  const auto rows = static_cast<uint64_t>(step.tokens.size());
  counters_.step_ns += ns;
  ++counters_.steps;
  (step.is_prefill ? counters_.prefill_tokens : counters_.decode_tokens) += rows;
  (step.is_prefill ? counters_.prefill_ns : counters_.decode_ns) += ns;
}

void EngineImpl::feed(SessionImpl& session, std::span<const int32_t> tokens, float* last, float* all,
                      const Progress& progress) {
  check_tokens(tokens);
  check_context(session.position(), static_cast<int64_t>(tokens.size()));
  const auto total = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> rows;
  try {
    for (int64_t done = 0; done < total;) {
      const std::lock_guard lock(step_mutex_);
      const int64_t count = std::min(plan_.prefill_chunk, total - done);
      SessionImpl* const growing[] = {&session};
      make_room(growing, count);
      const backend::Span span{session.sequence_.get(), 0, count};
      const backend::Step step{.tokens = tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
                               .spans = {&span, 1},
                               .is_prefill = true};
      const bool final_chunk = done + count == total;
      rows.clear();
      float* out = nullptr;
      if (all != nullptr) {
        rows.resize(static_cast<size_t>(count));
        std::iota(rows.begin(), rows.end(), 0);
        out = all + done * info_.vocab;
      } else if (final_chunk && last != nullptr) {
        rows.push_back(static_cast<int32_t>(count - 1));
        out = last;
      }
      run_step(step, rows, out, stop_check(progress, done, total));
      done += count;
    }
  } catch (...) {
    const std::lock_guard lock(step_mutex_);
    session.sequence_->rollback();
    throw;
  }
  const std::lock_guard lock(step_mutex_);
  session.sequence_->commit();
  session.tokens_.insert(session.tokens_.end(), tokens.begin(), tokens.end());
  if (all != nullptr && last != nullptr)
    std::copy_n(all + (total - 1) * info_.vocab, info_.vocab, last);
}

void EngineImpl::decode(std::span<Session* const> sessions, std::span<const int32_t> tokens, float* logits,
                        const Progress& progress) {
  check_tokens(tokens);
  if (sessions.size() != tokens.size())
    throw ConfigError("decode got " + std::to_string(sessions.size()) + " sessions and " +
                      std::to_string(tokens.size()) + " tokens; it needs one token for each session");
  std::vector<SessionImpl*> members;
  std::vector<backend::Span> spans;
  for (Session* session : sessions) {
    auto* member = dynamic_cast<SessionImpl*>(session);
    if (member == nullptr || member->engine_.get() != this)
      throw ConfigError("a session given to decode belongs to another engine");
    if (std::find(members.begin(), members.end(), member) != members.end())
      throw ConfigError("a session stands twice in one decode");
    check_context(member->position(), 1);
    spans.push_back({member->sequence_.get(), static_cast<int64_t>(members.size()), 1});
    members.push_back(member);
  }
  std::vector<int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  const std::lock_guard lock(step_mutex_);
  make_room(members, 1);
  try {
    run_step({.tokens = tokens, .spans = spans}, rows, logits, stop_check(progress, 0, static_cast<int64_t>(tokens.size())));
  } catch (...) {
    for (SessionImpl* member : members) member->sequence_->rollback();
    throw;
  }
  for (size_t i = 0; i < members.size(); ++i) {
    members[i]->sequence_->commit();
    members[i]->tokens_.push_back(tokens[i]);
  }
}

}  // namespace flash_moe::engine
