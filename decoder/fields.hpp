// The fields of the trade windows and the features, as names and texts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "decimal.hpp"
#include "sbe.hpp"
#include "windows.hpp"

namespace sheetanchor {

using Fields = std::vector<std::pair<std::string, std::string>>;

inline Fields window_fields(const WindowStats& stats, int price_exponent, int qty_exponent, double window_s,
                            std::optional<double> mid) {
  const double volume = scaled(stats.volume, qty_exponent);
  const double notional = scaled(stats.notional, price_exponent + qty_exponent);
  const double vwap = volume > 0 ? notional / volume : 0;
  const auto signed_volume = shortest(scaled(stats.signed_volume, qty_exponent));
  const Int128 bought = (stats.volume + stats.signed_volume) / 2, sold = (stats.volume - stats.signed_volume) / 2;
  const auto count = static_cast<double>(stats.count);
  return {
      {"count", std::to_string(stats.count)},
      {"vol", shortest(volume)},
      {"volume", shortest(volume)},
      {"signed_vol", signed_volume},
      {"signed_volume", signed_volume},
      {"notional", shortest(notional)},
      {"buy_volume", shortest(scaled(bought, qty_exponent))},
      {"sell_volume", shortest(scaled(sold, qty_exponent))},
      {"vwap", shortest(vwap)},
      {"vwap_minus_mid", shortest(mid && stats.count > 0 ? vwap - *mid : 0)},
      {"trade_intensity", shortest(count / window_s)},
      {"avg_trade_size", shortest(stats.count > 0 ? volume / count : 0)},
      {"interarr_mean", shortest(stats.interarrival_mean_s)},
      {"interarr_var", shortest(stats.interarrival_var_s2)},
      {"last_ts_us", std::to_string(stats.last_time_us)},
  };
}

inline void level_fields(Fields& out, const std::vector<sbe::Level>& levels, const char* name, int price_exponent,
                         int qty_exponent) {
  for (std::size_t rank = 0; rank < levels.size(); ++rank) {
    const auto stem = name + std::to_string(rank + 1);
    out.emplace_back(stem + "_p", decimal(levels[rank].price, price_exponent));
    out.emplace_back(stem + "_q", decimal(levels[rank].qty, qty_exponent));
  }
}

}  // namespace sheetanchor
