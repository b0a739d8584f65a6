// A stream entry: per frame u32 length, i64 receive time in microseconds, frame; little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "sbe.hpp"

namespace sheetanchor {

inline constexpr std::size_t ENVELOPE_BYTES = 12;

// Throws unless the lengths add up to the whole batch.
inline void check_envelope(sbe::Bytes batch) {
  for (std::size_t at = 0; at < batch.size();) {
    const auto left = batch.size() - at;
    if (left < ENVELOPE_BYTES)
      throw std::invalid_argument("batch: expected 12 bytes before a frame at offset " + std::to_string(at) +
                                  ", found " + std::to_string(left));
    const std::size_t length = sbe::load<std::uint32_t>(batch.data() + at);
    if (length > left - ENVELOPE_BYTES)
      throw std::invalid_argument("batch: expected a frame of " + std::to_string(length) + " bytes at offset " +
                                  std::to_string(at + ENVELOPE_BYTES) + ", found " +
                                  std::to_string(left - ENVELOPE_BYTES));
    at += ENVELOPE_BYTES + length;
  }
}

}  // namespace sheetanchor
