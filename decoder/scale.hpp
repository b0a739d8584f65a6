// Mantissas of one exponent brought to another, exactly, within the bounds that keep every later sum exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "book.hpp"
#include "decimal.hpp"
#include "sbe.hpp"
#include "windows.hpp"

namespace sheetanchor {

// What a frame's mantissas are multiplied by to come to the market's exponents.
struct Factors {
  std::int64_t price = 1, qty = 1;

  bool is_one() const { return price == 1 && qty == 1; }
};

inline bool times(std::int64_t& value, std::int64_t factor, std::int64_t limit) {
  return !__builtin_mul_overflow(value, factor, &value) && value <= limit;
}

// A price above 0 and a quantity of 0 (removed) or more, within the bounds that keep every sum exact.
inline bool convert(const Level& wire, Factors factors, Level& out) {
  std::int64_t price = 0, qty = 0;
  const bool price_overflows = __builtin_mul_overflow(wire.price, factors.price, &price);
  const bool qty_overflows = __builtin_mul_overflow(wire.qty, factors.qty, &qty);
  out.price = price;
  out.qty = qty;
  return !price_overflows && !qty_overflows && price > 0 && qty >= 0 && price <= PRICE_MAX &&
         Int128{price} * qty <= PRODUCT_MAX;
}

// Whatever quantity the wire can carry, the product with a lower price is within bounds: no need to multiply.
inline constexpr std::int64_t ANY_QTY_PRICE_LIMIT = std::int64_t{1} << (PRODUCT_BITS - 63);

// The best of a side; a side without orders is sent as zeros, and stays so.
inline bool convert_best(const Level& wire, Factors factors, Level& out) {
  if (factors.is_one() && wire.price > 0 && wire.price < ANY_QTY_PRICE_LIMIT && wire.qty > 0) {
    out = wire;
    return true;
  }
  if (wire.price == 0 && wire.qty == 0) return true;
  return convert(wire, factors, out) && out.qty > 0;
}

inline bool convert_trade(PastTrade& trade, Factors factors) {
  Level level{};
  if (trade.qty == 0 || !convert({trade.price, trade.qty}, factors, level)) return false;
  trade.price = level.price;
  trade.qty = level.qty;
  return true;
}

inline void require_levels(std::vector<Level>& levels, Factors factors, const char* side) {
  if (levels.size() > LEVELS_MAX)
    throw std::invalid_argument(std::string(side) + ": expected at most 32768 levels, found " +
                                std::to_string(levels.size()));
  for (std::size_t at = 0; at < levels.size(); ++at)
    if (levels[at].qty == 0 || !convert(levels[at], factors, levels[at]))
      throw std::invalid_argument(std::string(side) + "[" + std::to_string(at) +
                                  "]: expected a price and a quantity above 0 that fit the market's exponents");
}

// Whether `convert` takes every level of a group as it is: prices above 0, quantities of 0 or more, within the bounds.
// Without a branch per level, for frames at the market's own exponents: nearly all of them.
inline bool is_sound(const sbe::Group& group) {
  std::int64_t signs = 0, prices = 0;
  for (std::uint32_t at = 0; at < group.count; ++at) {
    const auto level = group.level(at);
    signs |= (level.price | level.qty) | static_cast<std::int64_t>(static_cast<std::uint64_t>(level.price) - 1);
    prices |= level.price;
  }
  if (signs < 0) return false;
  if (prices < ANY_QTY_PRICE_LIMIT) return true;
  Level out{};
  for (std::uint32_t at = 0; at < group.count; ++at)
    if (!convert(group.level(at), {}, out)) return false;
  return true;
}

inline bool convert_group(const sbe::Group& group, Factors factors, std::vector<Level>& out) {
  out.resize(group.count);
  for (std::uint32_t at = 0; at < group.count; ++at)
    if (!convert(group.level(at), factors, out[at])) return false;
  return true;
}

}  // namespace sheetanchor
