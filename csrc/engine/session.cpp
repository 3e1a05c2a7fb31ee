#include <utility>

#include "engine/engine_impl.h"

namespace flash_moe::engine {

SessionImpl::SessionImpl(std::shared_ptr<EngineImpl> engine, std::unique_ptr<backend::Sequence> sequence,
                         std::vector<int32_t> tokens)
    : engine_(std::move(engine)), sequence_(std::move(sequence)), tokens_(std::move(tokens)) {
  engine_->attach(*this);
}

SessionImpl::~SessionImpl() { engine_->detach(*this); }

void SessionImpl::feed(std::span<const int32_t> tokens, float* last, float* all, const Progress& progress) {
  engine_->feed(*this, tokens, last, all, progress);
}

std::unique_ptr<Session> SessionImpl::fork() const {
  return std::make_unique<SessionImpl>(engine_, sequence_->fork(), tokens_);
}

void SessionImpl::save(const std::string& path) const {
  write_session(path, engine_->identity(), tokens_, *sequence_);
}

}  // namespace flash_moe::engine
