// Scaled integers to text and to doubles, without drift.
//
// A market keeps all its prices at one exponent and all its quantities at another. Sums of quantities are kept in 128
// bits and sums of products in 192, so a statistic is rounded once, when it becomes a double.
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>

namespace sheetanchor {

using Int128 = __int128;

// One exponent more or less than any market needs; beyond it a 64-bit mantissa says nothing useful.
inline constexpr int EXPONENT_MAX = 18;
// Bid plus ask still fits 64 bits. At eight decimals, what the exchange writes, it is 23 billion.
inline constexpr std::int64_t PRICE_MAX = std::int64_t{1} << 61;
// All that the wire can carry: at eight decimals 92 billion, which the exchange documents as its largest quantity.
inline constexpr std::int64_t QTY_MAX = INT64_MAX;
// Beyond this neither of both can be right.
inline constexpr int PRODUCT_BITS = 119;
inline constexpr Int128 PRODUCT_MAX = (Int128{1} << PRODUCT_BITS) - 1;

// A sum of products, exact in 192 bits: 2^18 of them (the most trades kept) need 137.
class WideSum {
 public:
  // Adds what is not below zero.
  void add(Int128 product) {
    const auto before = low_;
    low_ += static_cast<std::uint64_t>(product);
    high_ += (product >> 64) + (low_ < before);
  }
  friend WideSum operator+(WideSum a, const WideSum& b) {
    const auto before = a.low_;
    a.low_ += b.low_;
    a.high_ += b.high_ + (a.low_ < before);
    return a;
  }
  friend WideSum operator-(WideSum a, const WideSum& b) {
    const auto before = a.low_;
    a.low_ -= b.low_;
    a.high_ -= b.high_ + (a.low_ > before);
    return a;
  }
  // Rounded once.
  explicit operator double() const {
    if (high_ == static_cast<std::int64_t>(high_)) return static_cast<double>((high_ << 64) | Int128{low_});
    if (high_ < 0) return -static_cast<double>(WideSum{} - *this);
    int shift = 1;
    while (high_ >> shift >= Int128{1} << 62) ++shift;
    // What is shifted out only decides how to round, and for that one bit says enough.
    const bool rest = (low_ & ((std::uint64_t{1} << shift) - 1)) != 0;
    const Int128 kept = (high_ << (64 - shift)) | Int128{low_ >> shift} | Int128{rest};
    return std::ldexp(static_cast<double>(kept), shift);
  }

 private:
  Int128 high_ = 0;
  std::uint64_t low_ = 0;
};

inline double power_of_ten(int exponent) {
  static const auto table = [] {
    std::array<double, 2 * EXPONENT_MAX + 1> powers{};
    for (std::size_t at = 0; at < powers.size(); ++at)
      powers[at] = std::strtod(("1e" + std::to_string(at)).c_str(), nullptr);
    return powers;
  }();
  return table[static_cast<std::size_t>(exponent)];
}

template <class Number>
double scaled(const Number& mantissa, int exponent) {
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
