// Runs a book and a plain one side by side: `book_check NAME SEED`. Aborts where they differ, or where keeping the fast
// one in order costs more than a bounded number of moves a change.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "fuzz_book.hpp"

namespace {

using sheetanchor::Level;
using sheetanchor::Which;
using sheetanchor::fuzz::BookScript;
using sheetanchor::fuzz::Cursor;
using sheetanchor::fuzz::require;
using sheetanchor::fuzz::TwoSides;
using Random = std::mt19937_64;

constexpr int DIFFS = 150;
// One step of these markets costs fewer moves a change than a side at its bound may.
constexpr std::uint64_t MOVES_PER_CHANGE_MAX = 8;

template <Which which>
class MadeMarket {
 public:
  MadeMarket(std::uint64_t seed, std::int64_t tick, std::int64_t spacing)
      : random_(seed), tick_(tick), spacing_(spacing) {
    for (int nth = 0; nth < 1000; ++nth) add(nth * spacing_);
    send();
  }

  // Levels near the best price come and go.
  void usual() {
    for (int nth = 0; nth < 36; ++nth) changes_.push_back({at(between(0, 1000 * spacing_)), between(0, 3)});
    send();
  }

  // The market is at another price: what was best is gone, and there is as much where the best price is now.
  void jump(std::int64_t places) {
    for (const auto& level : sides_.best_levels(200)) changes_.push_back({level.price, 0});
    centre_ += places * tick_;
    for (int nth = 0; nth < 200; ++nth) add(nth * spacing_);
    send();
  }

  void far() {
    for (int nth = 0; nth < 36; ++nth) add(between(100'000, 1'000'000'000));
    send();
  }

  void empty() {
    for (const auto& level : sides_.best_levels(sides_.size())) changes_.push_back({level.price, 0});
    send();
    for (int nth = 0; nth < 1000; ++nth) add(nth * spacing_);
    send();
  }

  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }

  void check() const {
    sides_.compare();
    std::printf("%.1f moves a change\n", static_cast<double>(sides_.moved()) / static_cast<double>(sides_.changed()));
    require(sides_.moved() <= MOVES_PER_CHANGE_MAX * sides_.changed());
  }

 private:
  std::int64_t at(std::int64_t places) const {
    return which == Which::bid ? centre_ - places * tick_ : centre_ + places * tick_;
  }
  void add(std::int64_t places) {
    if (at(places) > 0) changes_.push_back({at(places), between(1, INT64_MAX)});
  }
  void send() {
    sides_.apply(changes_);
    sides_.compare();
    changes_.clear();
  }

  Random random_;
  std::int64_t tick_, spacing_, centre_ = 1'000'000'000'000'000;
  std::vector<Level> changes_;
  TwoSides<which> sides_;
};

template <Which which>
void play(const std::string& name, std::uint64_t seed) {
  for (const std::int64_t tick : {1, 100, 1'000'000})
    for (const std::int64_t spacing : {1, 17}) {
      MadeMarket<which> market(seed, tick, spacing);
      for (int diff = 0; diff < DIFFS; ++diff) {
        if (name == "moving") market.jump(30'000);
        else if (name == "there and back") market.jump(diff % 2 == 0 ? 40'000 : -40'000);
        else if (name == "drifting") market.jump(market.between(-300, 200));
        else if (name == "far") market.far();
        else if (name == "emptied" && diff % 10 == 0) market.empty();
        market.usual();
      }
      market.check();
    }
}

template <Which which>
void scripts(std::uint64_t seed) {
  Random random(seed);
  for (int nth = 0; nth < 20; ++nth) {
    std::vector<std::uint8_t> bytes(200 + random() % 2000);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    BookScript<which>(Cursor(bytes)).run();
  }
}

}  // namespace

int main(int count, char** arguments) {
  require(count == 3);
  const std::string name = arguments[1];
  const std::uint64_t seed = std::strtoull(arguments[2], nullptr, 10);
  if (name == "random") scripts<Which::bid>(seed), scripts<Which::ask>(seed);
  else play<Which::bid>(name, seed), play<Which::ask>(name, seed);
}
