// Binance spot market-data streams in SBE (schema id 1): bytes to checked views and back.
//
// Nothing here knows Python or keeps state. `parse` checks a whole frame, every enum and the symbol included, before it
// answers; the view it fills points into the caller's bytes, so no allocation depends on a number from the wire.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sheetanchor::sbe {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian and is read with plain loads");

using Bytes = std::span<const std::uint8_t>;

inline constexpr std::uint16_t SCHEMA_ID = 1;
inline constexpr std::uint16_t SCHEMA_VERSION = 0;

inline constexpr std::uint16_t TRADES = 10000;
inline constexpr std::uint16_t BEST_BID_ASK = 10001;
inline constexpr std::uint16_t DEPTH_SNAPSHOT = 10002;
inline constexpr std::uint16_t DEPTH_DIFF = 10003;

inline constexpr std::size_t HEADER_BYTES = 8;
inline constexpr std::size_t TRADE_BYTES = 25;
inline constexpr std::size_t LEVEL_BYTES = 16;

// The schema's own maximum for groupSize16Encoding. The trades group could claim 2^31-1 entries; the exchange states no
// bound for it, so it gets the same one: 1.6 MB of trades in one frame is beyond anything a market does.
inline constexpr std::uint32_t GROUP_COUNT_MAX = 65534;
// varString8: a length of 255 means null, which no required field may be.
inline constexpr std::size_t SYMBOL_BYTES_MAX = 254;

// What state is built from has to be plausible: ids below 2^62 can be counted on from, times end in the year 2112.
inline constexpr std::int64_t ID_LIMIT = std::int64_t{1} << 62;
inline constexpr std::int64_t TIME_LIMIT_US = std::int64_t{1} << 52;

enum class Kind : std::uint8_t {
  truncated,
  schema_mismatch,
  unknown_template,
  bad_block_length,
  bad_enum,
  bad_utf8,
  too_large,
};
inline constexpr std::size_t KIND_COUNT = 7;
inline constexpr const char* KIND_NAMES[KIND_COUNT] = {
    "truncated", "schema_mismatch", "unknown_template", "bad_block_length", "bad_enum", "bad_utf8", "too_large"};

inline const char* name_of(Kind kind) { return KIND_NAMES[static_cast<std::size_t>(kind)]; }

struct Error {
  Kind kind = Kind::truncated;
  std::size_t offset = 0;      // bytes from the start of the frame
  const char* field = "";      // what stands there
  const char* expected = "";   // "{}" stands for `bound`
  std::int64_t bound = 0;
  std::int64_t found = 0;

  std::string message() const {
    std::string wanted = expected;
    if (const auto at = wanted.find("{}"); at != std::string::npos) wanted.replace(at, 2, std::to_string(bound));
    return std::string(name_of(kind)) + " at offset " + std::to_string(offset) + ": " + field + ": expected " + wanted +
           ", found " + std::to_string(found);
  }
};

// The fields are packed, so an int64 may start anywhere.
template <class T>
T load(const std::uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

struct Level {
  std::int64_t price;
  std::int64_t qty;
  friend bool operator==(const Level&, const Level&) = default;
};

struct Trade {
  std::int64_t id;
  std::int64_t price;
  std::int64_t qty;
  bool is_buyer_maker;
};

// Entries of a repeating group, `stride` bytes apart: a newer schema version may have made them longer.
struct Group {
  const std::uint8_t* first = nullptr;
  std::uint32_t count = 0;
  std::uint16_t stride = 0;

  std::size_t size() const { return count; }
  Level operator[](std::size_t index) const { return level(static_cast<std::uint32_t>(index)); }
  const std::uint8_t* at(std::uint32_t index) const { return first + std::size_t{index} * stride; }
  Level level(std::uint32_t index) const {
    const auto* entry = at(index);
    return {load<std::int64_t>(entry), load<std::int64_t>(entry + 8)};
  }
  Trade trade(std::uint32_t index) const {
    const auto* entry = at(index);
    return {load<std::int64_t>(entry), load<std::int64_t>(entry + 8), load<std::int64_t>(entry + 16), entry[24] == 1};
  }
};

// One checked frame. Which fields mean something depends on the template.
struct Frame {
  std::uint16_t template_id = 0;
  std::int8_t price_exponent = 0;
  std::int8_t qty_exponent = 0;
  std::int64_t event_time_us = 0;
  std::int64_t transact_time_us = 0;            // trades
  std::int64_t first_update_id = 0;             // depth diff; elsewhere equal to last_update_id
  std::int64_t last_update_id = 0;              // depth diff; bookUpdateId of bestBidAsk and depth snapshot
  Level bid{}, ask{};                           // bestBidAsk
  Group trades, bids, asks;
  std::string_view symbol;
  std::size_t trailing_bytes = 0;
};

namespace detail {

// Whether a frame's bytes from `at` to `end` are ASCII. At least eight bytes come before them.
inline bool is_ascii(Bytes frame, std::size_t at, std::size_t end) {
  constexpr std::uint64_t HIGH_BITS = 0x8080808080808080;
  for (; end - at >= 8; end -= 8)
    if (load<std::uint64_t>(frame.data() + end - 8) & HIGH_BITS) return false;
  // The bytes in front of the text are read with it and shifted out: one load for nearly every symbol.
  return end == at || (load<std::uint64_t>(frame.data() + end - 8) >> (64 - 8 * (end - at)) & HIGH_BITS) == 0;
}

// Index of the first byte of the first malformed sequence, or the size if there is none (RFC 3629: no surrogates,
// nothing overlong, nothing above U+10FFFF).
inline std::size_t utf8_error(Bytes text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::uint8_t lead = text[at];
    if (lead < 0x80) {
      ++at;
      continue;
    }
    std::size_t tail = 0;
    std::uint8_t low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) tail = 1;
    else if (lead >= 0xE0 && lead <= 0xEF) tail = 2;
    else if (lead >= 0xF0 && lead <= 0xF4) tail = 3;
    if (tail == 0 || text.size() - at <= tail) return at;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    if (text[at + 1] < low || text[at + 1] > high) return at;
    for (std::size_t next = 2; next <= tail; ++next)
      if ((text[at + next] & 0xC0) != 0x80) return at;
    at += tail + 1;
  }
  return at;
}

class Reader {
 public:
  Reader(Bytes frame, Error& error) : frame_(frame), error_(error) {}

  bool parse(Frame& out) {
    if (!header(out)) return false;
    switch (out.template_id) {
      case TRADES:
        return root(out, 18) && trades(out) && symbol(out);
      case BEST_BID_ASK:
        return root(out, 50) && symbol(out);
      case DEPTH_SNAPSHOT:
        return root(out, 18) && levels(out.bids, "bids") && levels(out.asks, "asks") && symbol(out);
      default:
        return root(out, 26) && levels(out.bids, "bids") && levels(out.asks, "asks") && symbol(out);
    }
  }

 private:
  std::size_t left() const { return frame_.size() - at_; }

  bool fail(Kind kind, std::size_t offset, const char* field, const char* expected, std::int64_t bound,
            std::int64_t found) {
    error_ = {kind, offset, field, expected, bound, found};
    return false;
  }

  bool need(std::uint64_t bytes, const char* field) {
    if (bytes <= left()) return true;
    return fail(Kind::truncated, at_, field, "{} bytes", static_cast<std::int64_t>(bytes),
                static_cast<std::int64_t>(left()));
  }

  bool header(Frame& out) {
    if (!need(HEADER_BYTES, "message header")) return false;
    block_length_ = load<std::uint16_t>(frame_.data());
    out.template_id = load<std::uint16_t>(frame_.data() + 2);
    const auto schema = load<std::uint16_t>(frame_.data() + 4);
    if (schema != SCHEMA_ID) return fail(Kind::schema_mismatch, 4, "schemaId", "{}", SCHEMA_ID, schema);
    if (out.template_id < TRADES || out.template_id > DEPTH_DIFF)
      return fail(Kind::unknown_template, 2, "templateId", "10000..10003", 0, out.template_id);
    at_ = HEADER_BYTES;
    return true;
  }

  bool root(Frame& out, std::uint16_t known) {
    if (block_length_ < known)
      return fail(Kind::bad_block_length, 0, "blockLength", "at least {}", known, block_length_);
    if (!need(block_length_, "root block")) return false;
    const auto* block = frame_.data() + at_;
    at_ += block_length_;
    out.event_time_us = load<std::int64_t>(block);
    const auto* exponents = block + 16;
    if (out.template_id == TRADES) {
      out.transact_time_us = load<std::int64_t>(block + 8);
    } else {
      out.first_update_id = out.last_update_id = load<std::int64_t>(block + 8);
    }
    if (out.template_id == DEPTH_DIFF) {
      out.last_update_id = load<std::int64_t>(block + 16);
      exponents = block + 24;
    }
    out.price_exponent = load<std::int8_t>(exponents);
    out.qty_exponent = load<std::int8_t>(exponents + 1);
    if (out.template_id == BEST_BID_ASK) {
      out.bid = {load<std::int64_t>(block + 18), load<std::int64_t>(block + 26)};
      out.ask = {load<std::int64_t>(block + 34), load<std::int64_t>(block + 42)};
    }
    return true;
  }

  // Both bounds are checked in 64 bits before anything is read by count. An empty group may state any entry length.
  bool group(Group& out, std::uint32_t count, std::uint16_t stride, std::size_t known, std::size_t header_at,
             const char* field) {
    if (count != 0 && stride < known)
      return fail(Kind::bad_block_length, header_at, field, "an entry blockLength of at least {}",
                  static_cast<std::int64_t>(known), stride);
    if (count > GROUP_COUNT_MAX)
      return fail(Kind::too_large, header_at + 2, field, "a numInGroup of at most {}", GROUP_COUNT_MAX, count);
    const std::uint64_t bytes = std::uint64_t{count} * stride;
    if (!need(bytes, field)) return false;
    out = {frame_.data() + at_, count, stride};
    at_ += static_cast<std::size_t>(bytes);
    return true;
  }

  bool levels(Group& out, const char* field) {
    if (!need(4, field)) return false;
    const auto* head = frame_.data() + at_;
    const auto header_at = at_;
    at_ += 4;
    return group(out, load<std::uint16_t>(head + 2), load<std::uint16_t>(head), LEVEL_BYTES, header_at, field);
  }

  bool trades(Frame& out) {
    if (!need(6, "trades")) return false;
    const auto* head = frame_.data() + at_;
    const auto header_at = at_;
    at_ += 6;
    if (!group(out.trades, load<std::uint32_t>(head + 2), load<std::uint16_t>(head), TRADE_BYTES, header_at, "trades"))
      return false;
    for (std::uint32_t index = 0; index < out.trades.count; ++index) {
      const auto* flag = out.trades.at(index) + 24;
      if (*flag > 1)
        return fail(Kind::bad_enum, static_cast<std::size_t>(flag - frame_.data()), "isBuyerMaker", "0 or 1", 0, *flag);
    }
    return true;
  }

  bool symbol(Frame& out) {
    if (!need(1, "symbol length")) return false;
    const std::size_t length = frame_[at_];
    ++at_;
    if (!need(length, "symbol")) return false;
    if (length > SYMBOL_BYTES_MAX)
      return fail(Kind::too_large, at_ - 1, "symbol length", "at most {}", SYMBOL_BYTES_MAX,
                  static_cast<std::int64_t>(length));
    const auto text = frame_.subspan(at_, length);
    const auto bad = is_ascii(frame_, at_, at_ + length) ? length : utf8_error(text);
    if (bad != length) return fail(Kind::bad_utf8, at_ + bad, "symbol", "UTF-8", 0, text[bad]);
    out.symbol = {reinterpret_cast<const char*>(text.data()), length};
    at_ += length;
    out.trailing_bytes = left();
    return true;
  }

  Bytes frame_;
  Error& error_;
  std::size_t at_ = 0;
  std::uint16_t block_length_ = 0;
};

template <class T>
void put(std::vector<std::uint8_t>& out, T value) {
  const auto at = out.size();
  out.resize(at + sizeof value);
  std::memcpy(out.data() + at, &value, sizeof value);
}

}  // namespace detail

// Fills `out` and answers true, or fills `error` and answers false. `out` borrows from `frame`; fields that its
// template does not have keep what they held, but no group outlives its frame.
inline bool parse(Bytes frame, Frame& out, Error& error) {
  for (auto* group : {&out.trades, &out.bids, &out.asks}) group->count = 0;
  return detail::Reader(frame, error).parse(out);
}

// What `encode` writes: the fields of Frame as values. The caller has checked counts, symbol size and UTF-8.
struct Message {
  Frame fields;
  std::vector<Trade> trades;
  std::vector<Level> bids, asks;
  std::string symbol;
};

inline std::uint16_t root_bytes(std::uint16_t template_id) {
  if (template_id == BEST_BID_ASK) return 50;
  return template_id == DEPTH_DIFF ? 26 : 18;
}

inline std::vector<std::uint8_t> encode(const Message& message) {
  using detail::put;
  const auto& fields = message.fields;
  const auto id = fields.template_id;
  std::vector<std::uint8_t> out;
  out.reserve(96 + TRADE_BYTES * message.trades.size() + LEVEL_BYTES * (message.bids.size() + message.asks.size()));
  for (const std::uint16_t word : {root_bytes(id), id, SCHEMA_ID, SCHEMA_VERSION}) put(out, word);
  put(out, fields.event_time_us);
  put(out, id == TRADES ? fields.transact_time_us : id == DEPTH_DIFF ? fields.first_update_id : fields.last_update_id);
  if (id == DEPTH_DIFF) put(out, fields.last_update_id);
  put(out, fields.price_exponent);
  put(out, fields.qty_exponent);
  const auto put_level = [&out](const Level& level) {
    put(out, level.price);
    put(out, level.qty);
  };
  if (id == BEST_BID_ASK) {
    put_level(fields.bid);
    put_level(fields.ask);
  } else if (id == TRADES) {
    put(out, static_cast<std::uint16_t>(TRADE_BYTES));
    put(out, static_cast<std::uint32_t>(message.trades.size()));
    for (const auto& trade : message.trades) {
      put(out, trade.id);
      put(out, trade.price);
      put(out, trade.qty);
      put(out, static_cast<std::uint8_t>(trade.is_buyer_maker));
    }
  } else {
    for (const auto* side : {&message.bids, &message.asks}) {
      put(out, static_cast<std::uint16_t>(LEVEL_BYTES));
      put(out, static_cast<std::uint16_t>(side->size()));
      for (const auto& level : *side) put_level(level);
    }
  }
  put(out, static_cast<std::uint8_t>(message.symbol.size()));
  out.insert(out.end(), message.symbol.begin(), message.symbol.end());
  return out;
}

}  // namespace sheetanchor::sbe
