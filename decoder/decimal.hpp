// Scaled integers to text and to doubles, without drift.
//
// A market keeps all its prices at one exponent and all its quantities at another. Sums of products are kept in 128
// bits, so a statistic is rounded once, when it becomes a double.
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string>

namespace sheetanchor {

using Int128 = __int128;

// One exponent more or less than any market needs; beyond it a 64-bit mantissa says nothing useful.
inline constexpr int EXPONENT_MAX = 18;
// Bid plus ask still fits 64 bits.
inline constexpr std::int64_t MANTISSA_MAX = std::int64_t{1} << 61;
// 2^18 products (the most trades kept) of this size still sum up below 2^127.
inline constexpr int PRODUCT_BITS = 107;
inline constexpr Int128 PRODUCT_MAX = (Int128{1} << PRODUCT_BITS) - 1;

inline double power_of_ten(int exponent) {
  static const auto table = [] {
    std::array<double, 2 * EXPONENT_MAX + 1> powers{};
    for (std::size_t at = 0; at < powers.size(); ++at)
      powers[at] = std::strtod(("1e" + std::to_string(at)).c_str(), nullptr);
    return powers;
  }();
  return table[static_cast<std::size_t>(exponent)];
}

inline double scaled(Int128 mantissa, int exponent) {
  const auto value = static_cast<double>(mantissa);
  return exponent < 0 ? value / power_of_ten(-exponent) : value * power_of_ten(exponent);
}

// 10^exponent, or 0 where 64 bits cannot hold it.
inline std::int64_t integer_power_of_ten(int exponent) {
  if (exponent < 0 || exponent > 18) return 0;
  std::int64_t power = 1;
  for (int step = 0; step < exponent; ++step) power *= 10;
  return power;
}

// (6183763000000, -8) is "61837.63000000": all digits, none added.
inline std::string decimal(std::int64_t mantissa, int exponent) {
  const bool negative = mantissa < 0;
  const auto magnitude = negative ? ~static_cast<std::uint64_t>(mantissa) + 1 : static_cast<std::uint64_t>(mantissa);
  std::string digits = std::to_string(magnitude);
  if (exponent >= 0) {
    if (magnitude != 0) digits.append(static_cast<std::size_t>(exponent), '0');
  } else {
    const auto places = static_cast<std::size_t>(-exponent);
    if (digits.size() <= places) digits.insert(0, places + 1 - digits.size(), '0');
    digits.insert(digits.size() - places, 1, '.');
  }
  return negative ? "-" + digits : digits;
}

// The shortest text that reads back as the same double, in the form Python writes it: 0.01, 15.0, 1e-05, 1.5e+16.
inline std::string shortest(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const auto mark = text.find('e');
  const int exponent = std::atoi(text.c_str() + mark + 1);
  if (exponent < -4 || exponent >= 16) return text;
  std::string digits;
  for (const char c : text.substr(0, mark))
    if (c >= '0' && c <= '9') digits += c;
  const std::string sign = text[0] == '-' ? "-" : "";
  if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace sheetanchor
