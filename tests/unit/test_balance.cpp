// SPDX-License-Identifier: Apache-2.0
#include "model_support.hpp"
#include "random_description.hpp"

#include <hymba/io/balance.hpp>
#include <hymba/io/quantise.hpp>
#include <hymba/model/random_weights.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>

using namespace hymba;
using namespace model_test;
using test::Rng, test::pick, test::random_description, test::random_tokens;

namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Moments, of which only the diagonal is not zero.
class Moments {
 public:
  explicit Moments(const std::vector<float>& diagonal)
      : cols_(static_cast<std::int64_t>(diagonal.size())), numbers_(diagonal.size() * diagonal.size()) {
    for (std::size_t i = 0; i < diagonal.size(); ++i) numbers_[i * diagonal.size() + i] = diagonal[i];
  }
  MatrixView<const float> view() const { return {numbers_.data(), cols_, cols_}; }

 private:
  std::int64_t cols_;
  std::vector<float> numbers_;
};

/// Some columns are larger than others by up to 2^12, and some are zero.
std::vector<float> uneven(Rng& rng, std::int64_t cols) {
  std::vector<float> squares(at(cols));
  for (float& s : squares) s = pick(rng, 0, 9) == 0 ? 0.0f : std::exp2(static_cast<float>(pick(rng, -12, 12)));
  return squares;
}

std::vector<float> numbers_of(const TensorRef& t) {
  REQUIRE(t.dtype == DType::f32);
  std::vector<float> out(t.bytes.size() / sizeof(float));
  std::memcpy(out.data(), t.bytes.data(), t.bytes.size());
  return out;
}

/// Rows of a matrix, or the elements of a vector.
std::int64_t rows_of(const TensorRef& t) { return t.shape[0]; }
std::int64_t cols_of(const TensorRef& t) {
  return static_cast<std::int64_t>(t.bytes.size() / sizeof(float)) / rows_of(t);
}

/// The readers that a layer names, with their makers.
std::multimap<std::string, std::string> makers_of_readers(const Architecture<DynamicHymba>& a) {
  std::multimap<std::string, std::string> out;
  for (int i = 0; i < a.layers; ++i) {
    const std::string layer = layer_prefix(i);
    for_each_scaling(a, i, [&](const char* maker, const char* reader) { out.emplace(layer + reader, layer + maker); });
  }
  return out;
}

/// The table with every maker divided and every reader multiplied as `balance` says.
TensorTable scaled(const TensorTable& table, const detail::Balance& balance) {
  auto memory = std::make_shared<std::map<std::string, std::vector<float>>>();
  TensorTable out;
  for (const auto& [name, t] : table.tensors) {
    std::vector<float>& numbers = (*memory)[name] = numbers_of(t);
    const std::int64_t cols = cols_of(t);
    const float* const by = balance.multiplied(name);
    const float* const divided = balance.divided(name);
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(numbers.size()); ++i) {
      if (by != nullptr) numbers[at(i)] *= by[i % cols];
      if (divided != nullptr) numbers[at(i)] /= divided[i / cols];
    }
    out.tensors[name] = {t.dtype, t.shape, {reinterpret_cast<const std::byte*>(numbers.data()), t.bytes.size()}};
  }
  out.owner = memory;
  return out;
}

}  // namespace

TEST_CASE("balance: factors are the powers of two nearest the root of a column's size beside the others'") {
  Rng rng(1);
  for (int n = 0; n < 50; ++n) {
    const std::vector<float> squares = uneven(rng, pick(rng, 1, 40));
    double mean = 0, count = 0;
    for (const float s : squares) {
      if (s > 0) mean += std::log2(static_cast<double>(s)), ++count;
    }
    const std::vector<float> factors = detail::balancing_factors(Moments(squares).view());
    REQUIRE(factors.size() == squares.size());
    for (std::size_t i = 0; i < squares.size(); ++i) {
      const double octaves = std::log2(static_cast<double>(factors[i]));
      CHECK(octaves == std::round(octaves));
      if (squares[i] == 0) {
        CHECK(octaves == 0);
      } else {
        const double exact = (std::log2(static_cast<double>(squares[i])) - mean / count) / 4;
        CHECK(std::fabs(octaves - exact) <= 0.5 + 1e-9);
      }
    }
  }
  // The most that a column is scaled by, and moments that are none.
  std::vector<float> squares(100, 1.0f);
  squares[3] = 1e36f;
  CHECK(detail::balancing_factors(Moments(squares).view())[3] == 64.0f);
  squares[7] = std::numeric_limits<float>::infinity();
  CHECK(detail::balancing_factors(Moments(squares).view()) == std::vector<float>(100, 1.0f));
  squares[7] = std::numeric_limits<float>::quiet_NaN();
  CHECK(detail::balancing_factors(Moments(squares).view()) == std::vector<float>(100, 1.0f));
}

TEST_CASE("balance: every scaling leaves every bit of a model in f32 as it was") {
  for (unsigned seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    const Description d = random_description(rng);
    const Architecture<DynamicHymba> a(d);
    const TensorTable table = random_tensors(a, seed);
    detail::Balance balance(a, declared_tensors(a, table, "test"));
    for (const auto& pair : makers_of_readers(a)) {
      const std::string &reader = pair.first, &maker = pair.second;  // captures take no structured bindings
      CAPTURE(reader);
      CAPTURE(maker);
      REQUIRE(table.find(reader) != nullptr);
      REQUIRE(table.find(maker) != nullptr);
      REQUIRE(rows_of(*table.find(maker)) == cols_of(*table.find(reader)));
      balance.choose(reader, Moments(uneven(rng, cols_of(*table.find(reader)))).view());
      REQUIRE(balance.multiplied(reader) == balance.divided(maker));
    }
    const std::vector<Token> ids = random_tokens(rng, d.vocabulary, 20);
    using Plain = Cpu<Weights::f32, Cache::f32, arch::scalar, Serial>;
    const Model<DynamicHymba, Plain> before(a, table), after(a, scaled(table, balance));
    CHECK(full_pass(after, ids, room_for(ids.size())) == full_pass(before, ids, room_for(ids.size())));
  }
}

TEST_CASE("balance: int8 tensors are rounded as they are scaled, with moments for all matrices or for some") {
  for (const bool all : {true, false}) {
    Rng rng(7);
    const Description d = random_description(rng);
    const Architecture<DynamicHymba> a(d);
    const TensorTable table = random_tensors(a, 7);
    const auto pairs = makers_of_readers(a);
    std::map<std::string, std::vector<float>> squares;
    int turn = 0;
    for (const auto& [reader, maker] : pairs) {
      if (squares.count(reader) > 0 || (!all && turn++ % 2 == 0)) continue;
      squares[reader] = uneven(rng, cols_of(*table.find(reader)));
    }
    const InputMoments moments = [&](const auto& use) {
      for (const auto& [name, diagonal] : squares) use(name, Moments(diagonal).view());
    };
    detail::Balance balance(a, declared_tensors(a, table, "test"));
    for (const auto& [name, diagonal] : squares) balance.choose(name, Moments(diagonal).view());
    const TensorTable stored = stored_tensors(a, table, "test", Weights::int8, moments);
    const TensorTable exact = scaled(table, balance);
    int changed = 0;
    for (const auto& entry : exact.tensors) {
      const std::string& name = entry.first;
      const TensorRef& t = entry.second;
      CAPTURE(name);
      const std::vector<float> expected = numbers_of(t);
      const TensorRef& kept = *stored.find(name);
      if (kept.dtype == DType::f32) {
        CHECK(numbers_of(kept) == expected);
        if (expected != numbers_of(*table.find(name))) ++changed;
        continue;
      }
      REQUIRE(layout_of(kept.dtype) == DType::int8);
      using Format = weight_format<Weights::int8>;
      const std::int64_t cols = cols_of(t);
      for (std::int64_t r = 0; r < rows_of(t); ++r) {
        const std::byte* const row = kept.bytes.data() + at(r) * Format::row_bytes(cols);
        if (is_rotated(kept.dtype)) {
          // Columns then do make up for each other's errors: all are nearly right.
          std::vector<float> turned(expected.begin() + r * cols, expected.begin() + (r + 1) * cols);
          reference::rotate(turned.data(), cols);
          double error = 0, square = 0;
          for (std::int64_t c = 0; c < cols; ++c) {
            const auto want = static_cast<double>(turned[at(c)]);
            const double off = Format::number<double>(row, cols, c) - want;
            error += off * off;
            square += want * want;
          }
          CHECK(std::sqrt(error) <= 0.05 * std::sqrt(square));
          continue;
        }
        for (std::int64_t c = 0; c < cols; ++c) {
          // With these moments nothing is made up for by other columns: within half a step, and the float's own rounding.
          const float step = Format::scale(row, cols, c / quantised_block);
          CHECK(std::fabs(Format::number<float>(row, cols, c) - expected[at(r * cols + c)]) <= 0.5001f * step);
        }
      }
    }
    CHECK(changed > 0);
  }
}

namespace {

/// What the scalings of a fusion of one's own may get wrong.
enum class Wrong { none, maker, reader, sizes, reads_vector, makes_fine };
template <Wrong W>
struct OwnFusion : SumOfHeads {
  template <class Visit>
  static constexpr void scalings(const char* matrix, Visit&& visit) {
    switch (W) {
      case Wrong::none: return;
      case Wrong::maker: return visit("mamba.no_norm.weight", matrix);
      case Wrong::reader: return visit("input_layernorm.weight", "mamba.no_proj.weight");
      case Wrong::sizes: return visit("input_layernorm.weight", matrix);
      case Wrong::reads_vector: return visit("input_layernorm.weight", "pre_moe_layernorm.weight");
      case Wrong::makes_fine: return visit("mamba.dt_proj.0.weight", matrix);
    }
  }
};
template <Wrong W>
struct WithOwnFusion {
  using attention = AttentionHeads<4, 2, 8, 8>;
  using ssm = MambaHeads<32, 4, 4, 2>;
  using fuse = OwnFusion<W>;
  using mlp = SwiGlu<24>;
  static constexpr int width = 16, layers = 2, vocabulary = 50;
};

/// What stored_tensors says; nothing if it is content.
template <Wrong W>
std::string refusal() {
  const auto& a = architecture<WithOwnFusion<W>>;
  try {
    stored_tensors(a, random_tensors(a, 3), "test", Weights::int8);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return {};
}

}  // namespace

TEST_CASE("balance: scalings of one's own that name the wrong tensors are refused") {
  CHECK(refusal<Wrong::none>() == "");
  CHECK(refusal<Wrong::maker>() == "scalings name tensor \"model.layers.0.mamba.no_norm.weight\", which the architecture "
                                   "does not declare");
  CHECK(refusal<Wrong::reader>() == "scalings name tensor \"model.layers.0.mamba.no_proj.weight\", which the "
                                    "architecture does not declare");
  CHECK(refusal<Wrong::sizes>() == "scalings name tensor \"model.layers.0.input_layernorm.weight\" with 16 rows for "
                                   "\"model.layers.0.mamba.out_proj.weight\", expected a matrix of as many columns");
  CHECK(refusal<Wrong::reads_vector>() == "scalings name tensor \"model.layers.0.input_layernorm.weight\" with 16 rows "
                                          "for \"model.layers.0.pre_moe_layernorm.weight\", expected a matrix of as "
                                          "many columns");
  CHECK(refusal<Wrong::makes_fine>() == "scalings name tensor \"model.layers.0.mamba.dt_proj.0.weight\" as a factor, "
                                        "expected a vector or a matrix that is not fine");
}
