// What one call has added to an engine so far, so that exactly that can be taken back.
//
// Rows are read from their source once, into memory of ours: another thread may write to the source
// meanwhile, and what it read a second time would be other rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine.hpp"
#include "memory.hpp"

namespace tensorstate {

// Memory for one piece after the other, each as long as it turns out to be.
class Pieces {
  public:
    // `least`: bytes that each piece may need.
    explicit Pieces(std::size_t least) : least_(least), bytes_(std::max(kChunkBytes, least)) {}

    void* next() {
        if (chunks_.empty() || bytes_ - used_ < least_) {
            chunks_.push_back(take_memory(bytes_));
            used_ = 0;
        }
        return static_cast<char*>(chunks_.back().get()) + used_;
    }
    std::size_t space() const noexcept { return bytes_ - used_; }  // of the piece that next() gave
    void keep(std::size_t bytes) noexcept { used_ += (bytes + 7) / 8 * 8; }

  private:
    std::size_t least_, bytes_, used_ = 0;
    Vector<Memory> chunks_;
};

class AddedRows {
  public:
    AddedRows(std::size_t neurons, bool counted, const Engine& engine)
        : counted_(counted), packed_(engine.takes_packed()), by_place_(engine.finds_places()),
          bytes_((neurons + 7) / 8), row_bytes_(words_of(neurons) * sizeof(std::uint64_t)),
          room_(std::clamp<std::size_t>(kBlockBytes / row_bytes_, 1, kMostPositions)),
          rows_(std::max(row_bytes_, kChunkBytes / 4)),
          places_(room_ * sizeof(std::uint32_t)), counts_(room_ * sizeof(std::uint64_t)) {
        if (by_place_) read_ = take_memory(room_ * row_bytes_);
    }

    // The source's next rows; none: no more.
    Rows next(Source& source) {
        if (blocks_.empty()) blocks_.reserve(16);
        blocks_.emplace_back();  // for keep(), which must not fail
        Room room{nullptr, nullptr, room_, packed_};
        std::uint32_t* places = nullptr;
        if (by_place_) {
            room.words = static_cast<std::uint64_t*>(read_.get());
            places = static_cast<std::uint32_t*>(places_.next());
        } else {
            room.words = static_cast<std::uint64_t*>(rows_.next());
            room.size = std::min(room_, rows_.space() / row_bytes_);
        }
        if (counted_) room.counts = static_cast<std::uint64_t*>(counts_.next());
        Rows rows = source.next(room);
        rows.places = places;
        return rows;
    }

    // Of the rows that next() gave, the first `rows.size` were added.
    void keep(Rows rows) noexcept {
        if (packed_ && rows.words != nullptr) pack(rows);
        blocks_.back() = rows;
        if (by_place_) {
            places_.keep(rows.size * sizeof(std::uint32_t));
        } else {
            rows_.keep(rows.size * (rows.words == nullptr ? rows.bytes : row_bytes_));
        }
        if (counted_) counts_.keep(rows.size * sizeof(std::uint64_t));
    }

    void take_back(Engine& engine) const noexcept {
        for (const Rows& rows : blocks_) engine.remove(rows);
        engine.purge();
    }

  private:
    static constexpr std::size_t kBlockBytes = std::size_t{256} << 10;  // fits the cache

    // In place: rows of few neurons would take more memory than the activations that they are of.
    void pack(Rows& rows) const noexcept {
        auto* const target = reinterpret_cast<unsigned char*>(const_cast<std::uint64_t*>(rows.words));
        for (std::size_t i = 0; i < rows.size; ++i) {
            const std::uint64_t word = rows.words[i];
            for (std::size_t byte = 0; byte < bytes_; ++byte) {
                target[i * bytes_ + byte] = static_cast<unsigned char>(word >> 8 * byte);
            }
        }
        rows.packed = target;
        rows.bytes = bytes_;
        rows.words = nullptr;
    }

    bool counted_, packed_, by_place_;
    std::size_t bytes_, row_bytes_, room_;
    Pieces rows_, places_, counts_;
    Memory read_;  // rows that needn't be kept
    Vector<Rows> blocks_;
};

}  // namespace tensorstate
