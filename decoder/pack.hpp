// The book as one string of bytes: what a processor loads when it starts or takes over.
//
// Layout 2, little-endian: "SAbk", u16 version, i8 price exponent, i8 quantity exponent, thirteen i64 (epoch, update id,
// best bid and ask id or -1, bid price, bid qty, ask price, ask qty, trade id or -1, event time, stamp, last known bid
// and ask price or 0, levels asked for or 0), u32 bids, u32 asks, u16 lines, u8 + symbol, per line u8 + name, u8 +
// stream id, levels of two i64 best first, CRC-32 of all before. Layout 1, which is read too, has ten i64: without the
// last three.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "book.hpp"
#include "decimal.hpp"
#include "sbe.hpp"

namespace sheetanchor {

struct PackedBook {
  std::string symbol;
  int price_exponent = 0;
  int qty_exponent = 0;
  std::int64_t epoch = 0;
  std::int64_t update_id = 0;
  std::int64_t best_id = -1;
  Level bid{}, ask{};
  std::int64_t trade_id = -1;
  std::int64_t event_us = -1;
  std::int64_t stamp_us = 0;
  std::int64_t bid_edge = WHOLE, ask_edge = WHOLE, cut_off = 0;
  std::map<std::string, std::string> line_ids;
  std::vector<Level> bids, asks;  // best first
};

inline constexpr char PACK_MAGIC[] = "SAbk";
inline constexpr std::uint16_t PACK_VERSION = 2;
inline constexpr std::size_t PACK_LINES_MAX = 255;

// The CRC of zlib and gzip (reflected polynomial 0xEDB88320), eight bytes a step: table `n` is for a byte with `n` more
// bytes behind it.
inline std::uint32_t crc32(std::string_view bytes) {
  static const auto tables = [] {
    std::array<std::array<std::uint32_t, 256>, 8> made{};
    for (std::uint32_t at = 0; at < 256; ++at) {
      std::uint32_t entry = at;
      for (int bit = 0; bit < 8; ++bit) entry = (entry >> 1) ^ (entry & 1 ? 0xEDB88320u : 0u);
      made[0][at] = entry;
    }
    for (std::size_t more = 1; more < made.size(); ++more)
      for (std::size_t at = 0; at < 256; ++at) {
        const auto before = made[more - 1][at];
        made[more][at] = (before >> 8) ^ made[0][before & 0xFF];
      }
    return made;
  }();
  std::uint32_t crc = ~0u;
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data(), sizeof word);
    word ^= crc;
    crc = 0;
    for (std::size_t nth = 0; nth < 8; ++nth) crc ^= tables[7 - nth][word >> 8 * nth & 0xFF];
  }
  for (const char byte : bytes) crc = (crc >> 8) ^ tables[0][(crc ^ static_cast<std::uint8_t>(byte)) & 0xFF];
  return ~crc;
}

namespace detail {

static_assert(sizeof(Level) == 16, "levels are packed as they are in memory: price, quantity");

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

inline void append_text(std::string& out, const std::string& text, const char* field) {
  if (text.size() > 255)
    throw std::invalid_argument(std::string(field) + ": expected at most 255 bytes, found " +
                                std::to_string(text.size()));
  append(out, static_cast<std::uint8_t>(text.size()));
  out += text;
}

class PackReader {
 public:
  explicit PackReader(std::string_view blob) : blob_(blob) {}

  template <class T>
  T take() {
    T value;
    std::memcpy(&value, slice(sizeof value).data(), sizeof value);
    return value;
  }
  std::string text() { return std::string(slice(take<std::uint8_t>())); }
  Level level() {
    const auto price = take<std::int64_t>();
    return {price, take<std::int64_t>()};
  }
  std::vector<Level> levels(std::uint32_t count) {
    if (std::uint64_t{count} * sizeof(Level) > blob_.size() - at_) slice(blob_.size() + 1);
    std::vector<Level> out(count);
    if (count != 0) std::memcpy(out.data(), slice(count * sizeof(Level)).data(), count * sizeof(Level));
    return out;
  }
  std::string_view slice(std::size_t count) {
    if (count > blob_.size() - at_)
      throw std::invalid_argument("book: expected " + std::to_string(count) + " bytes at offset " +
                                  std::to_string(at_) + ", found " + std::to_string(blob_.size() - at_));
    at_ += count;
    return blob_.substr(at_ - count, count);
  }
  std::size_t at() const { return at_; }

 private:
  std::string_view blob_;
  std::size_t at_ = 0;
};

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("book: " + message);
}

inline bool is_sound(const Level& level) {
  return level.price > 0 && level.price <= PRICE_MAX && level.qty > 0 &&
         Int128{level.price} * level.qty <= PRODUCT_MAX;
}

// A packed side lists prices strictly from the best to the worst, each with a quantity.
inline void check_side(const std::vector<Level>& levels, bool descending, const char* side) {
  for (std::size_t at = 0; at < levels.size(); ++at) {
    const bool ordered = at == 0 || (descending ? levels[at - 1].price > levels[at].price
                                                : levels[at - 1].price < levels[at].price);
    if (!ordered || !is_sound(levels[at]))
      require(false, std::string(side) + "[" + std::to_string(at) +
                         "]: expected a price further out than the one before, with a quantity");
  }
}

inline void check(const PackedBook& book) {
  require(std::abs(book.price_exponent) <= EXPONENT_MAX && std::abs(book.qty_exponent) <= EXPONENT_MAX,
          "an exponent is outside -18..18");
  require(book.update_id >= 0 && book.update_id < sbe::ID_LIMIT, "the update id is out of range");
  require(book.best_id >= -1 && book.best_id < sbe::ID_LIMIT, "the best bid and ask id is out of range");
  require(book.trade_id >= -1 && book.trade_id < sbe::ID_LIMIT, "the trade id is out of range");
  require(book.event_us >= -1 && book.event_us < sbe::TIME_LIMIT_US, "the event time is out of range");
  require(book.stamp_us >= 0 && book.stamp_us < sbe::TIME_LIMIT_US, "the stamp is out of range");
  require(book.bid_edge >= WHOLE && book.bid_edge <= PRICE_MAX && book.ask_edge >= WHOLE && book.ask_edge <= PRICE_MAX,
          "the last known price of a side is out of range");
  require(book.cut_off >= 0, "the number of levels asked for is out of range");
  require(book.bids.size() <= LEVELS_MAX && book.asks.size() <= LEVELS_MAX, "a side has too many levels");
  check_side(book.bids, true, "bids");
  check_side(book.asks, false, "asks");
  require(book.best_id < 0 || (is_sound(book.bid) && is_sound(book.ask)), "the best bid and ask are not prices");
}

}  // namespace detail

inline std::string pack(const PackedBook& book) {
  using detail::append;
  if (book.line_ids.size() > PACK_LINES_MAX)
    throw std::invalid_argument("line_ids: expected at most 255 lines, found " + std::to_string(book.line_ids.size()));
  std::string out(PACK_MAGIC, 4);
  out.reserve(256 + sizeof(Level) * (book.bids.size() + book.asks.size()));
  append(out, PACK_VERSION);
  append(out, static_cast<std::int8_t>(book.price_exponent));
  append(out, static_cast<std::int8_t>(book.qty_exponent));
  for (const std::int64_t value : {book.epoch, book.update_id, book.best_id, book.bid.price, book.bid.qty,
                                   book.ask.price, book.ask.qty, book.trade_id, book.event_us, book.stamp_us,
                                   book.bid_edge, book.ask_edge, book.cut_off})
    append(out, value);
  append(out, static_cast<std::uint32_t>(book.bids.size()));
  append(out, static_cast<std::uint32_t>(book.asks.size()));
  append(out, static_cast<std::uint16_t>(book.line_ids.size()));
  detail::append_text(out, book.symbol, "symbol");
  for (const auto& [name, id] : book.line_ids) {
    detail::append_text(out, name, "line name");
    detail::append_text(out, id, "line id");
  }
  for (const auto* side : {&book.bids, &book.asks})
    out.append(reinterpret_cast<const char*>(side->data()), side->size() * sizeof(Level));
  append(out, crc32(out));
  return out;
}

inline PackedBook unpack(std::string_view blob) {
  detail::require(blob.size() >= 12, "expected a packed book, found " + std::to_string(blob.size()) + " bytes");
  detail::PackReader in(blob.substr(0, blob.size() - 4));
  detail::require(in.slice(4) == std::string_view(PACK_MAGIC, 4), "expected the mark SAbk at offset 0");
  const auto version = in.take<std::uint16_t>();
  detail::require(version == 1 || version == PACK_VERSION, "expected layout 1 or 2, found " + std::to_string(version));
  std::uint32_t stored;
  std::memcpy(&stored, blob.data() + blob.size() - 4, sizeof stored);
  detail::require(stored == crc32(blob.substr(0, blob.size() - 4)), "the checksum does not match: the blob is damaged");
  PackedBook book;
  book.price_exponent = in.take<std::int8_t>();
  book.qty_exponent = in.take<std::int8_t>();
  book.epoch = in.take<std::int64_t>();
  book.update_id = in.take<std::int64_t>();
  book.best_id = in.take<std::int64_t>();
  book.bid = in.level();
  book.ask = in.level();
  book.trade_id = in.take<std::int64_t>();
  book.event_us = in.take<std::int64_t>();
  book.stamp_us = in.take<std::int64_t>();
  if (version == PACK_VERSION) {
    book.bid_edge = in.take<std::int64_t>();
    book.ask_edge = in.take<std::int64_t>();
    book.cut_off = in.take<std::int64_t>();
  }
  const auto bids = in.take<std::uint32_t>();
  const auto asks = in.take<std::uint32_t>();
  const auto lines = in.take<std::uint16_t>();
  book.symbol = in.text();
  for (std::uint16_t line = 0; line < lines; ++line) {
    const auto name = in.text();
    book.line_ids[name] = in.text();
  }
  book.bids = in.levels(bids);
  book.asks = in.levels(asks);
  detail::require(in.at() == blob.size() - 4, "bytes are left over after the levels");
  detail::check(book);
  return book;
}

}  // namespace sheetanchor
