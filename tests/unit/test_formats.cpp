// SPDX-License-Identifier: Apache-2.0
//
// Whole models in every weight format, on vectors and on tiles: what a format rounds is its weights (and, on tiles,
// what they are multiplied by) and nothing else; and however a text is read, the logits are the same.
#include <hymba/kernels/amx/gemm.hpp>

#include <type_traits>

#include "model_support.hpp"
#include "temp_folder.hpp"

using namespace hymba;
using namespace model_test;

namespace {

template <Weights W>
using OnVectors = Cpu<W, Cache::bf16>;

const std::initializer_list<const char*> varied = {"hymba_tiny",     "groups_of_three", "window_smaller_than_meta",
                                                   "window_one",     "no_meta",         "all_windows",
                                                   "odd_sizes",      "mixed_kinds",     "ssm_only",
                                                   "attention_only", "fusion_concat",   "untied_output"};

/// Text read in one pass, in chunks, in a batch with others, and from a snapshot: `tolerance` of the largest logit
/// apart.
template <class P>
void check_ways_of_reading(double tolerance) {
  for (const char* name : varied) {
    CAPTURE(name);
    const auto model = Model<DynamicHymba, P>::open(golden_root() / name);
    const std::vector<Token> ids = read_golden(golden_root() / name).ids;
    const std::size_t n = ids.size(), vocabulary = static_cast<std::size_t>(model.architecture().vocabulary);
    const std::span<const Token> text(ids);
    const std::vector<float> whole = full_pass(model, ids, room_for(n));
    REQUIRE(relative_error(whole, whole) == 0);  // all finite
    const auto row = [&](std::size_t i) { return std::span(whole).subspan(i * vocabulary, vocabulary); };

    for (const std::size_t chunk : {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{7}, n - 1}) {
      CAPTURE(chunk);
      REQUIRE(relative_error(pass_in_chunks(model, text, chunk, room_for(n)), whole) <= tolerance);
    }
    for (const int threads : {2, 3, 8}) {
      REQUIRE(full_pass(model, ids, {.max_context = static_cast<std::int64_t>(n), .threads = threads}) == whole);
    }

    auto first = model.session(room_for(n)), second = model.session(room_for(n)), third = model.session(room_for(n));
    auto batch = model.batch({.max_sessions = 3, .threads = 2, .max_rows = 64});
    using Item = typename Model<DynamicHymba, P>::batch_type::Item;
    batch.step(std::vector<Item>{{&first, text.first(n / 2)}, {&second, text.first(1)}, {&third, text.first(n / 3)}});
    batch.step(std::vector<Item>{{&first, text.subspan(n / 2, 1)}, {&third, text.subspan(n / 3, 3)}});
    CHECK(relative_error(first.logits(), row(n / 2)) <= tolerance);
    CHECK(relative_error(second.logits(), row(0)) <= tolerance);
    CHECK(relative_error(third.logits(), row(n / 3 + 2)) <= tolerance);

    auto restored = model.restore(first.snapshot(), room_for(n + 5));
    for (std::size_t i = n / 2 + 1; i < n; ++i) {
      REQUIRE(relative_error(restored.decode(ids[i]), row(i)) <= tolerance);
    }
  }
}

/// The model written out holds what its format makes of the numbers. Read back as f32 it gives the same logits, to the
/// rounding of sums; read back in its own format, the same bits. The cache is f32 here: it would round the last bits of
/// products, in which rotated weights differ from those that they stand for, to whole ones of its own.
template <Weights W>
void check_nothing_else_is_rounded() {
  const test::Folder folder;
  for (const std::string& name : golden_names()) {
    CAPTURE(name);
    const Golden golden = read_golden(golden_root() / name);
    const auto options = room_for(golden.ids.size());
    const auto narrow = Model<DynamicHymba, Cpu<W, Cache::f32>>::open(golden_root() / name);
    const auto saved = folder.path / name;
    narrow.save(saved);
    const auto logits = full_pass(narrow, golden.ids, options);
    const auto decoded = Model<DynamicHymba, Cpu<Weights::f32, Cache::f32>>::open(saved);
    CHECK(relative_error(logits, full_pass(decoded, golden.ids, options)) < 2e-5);
    const auto again = Model<DynamicHymba, Cpu<W, Cache::f32>>::open(saved);
    CHECK(full_pass(again, golden.ids, options) == logits);
  }
}

}  // namespace

TEST_CASE("f16 weights: nothing else is rounded") { check_nothing_else_is_rounded<Weights::f16>(); }
TEST_CASE("int8 weights: nothing else is rounded") { check_nothing_else_is_rounded<Weights::int8>(); }
TEST_CASE("int4 weights: nothing else is rounded") { check_nothing_else_is_rounded<Weights::int4>(); }

TEST_CASE("every way of reading gives the same logits: f16 weights") {
  check_ways_of_reading<OnVectors<Weights::f16>>(2e-5);
}
TEST_CASE("every way of reading gives the same logits: int8 weights") {
  check_ways_of_reading<OnVectors<Weights::int8>>(2e-5);
}
TEST_CASE("every way of reading gives the same logits: int4 weights") {
  check_ways_of_reading<OnVectors<Weights::int4>>(2e-5);
}

#if defined(HYMBA_AMX)

namespace {

template <Weights W>
using OnTiles = Cpu<W, Cache::bf16, arch::amx<arch::best>>;

/// On tiles sums are the same bits however the rows are grouped: nothing less would do, since a last bit decides how an
/// activation is rounded to a byte.
template <Weights W>
void check_tiles() {
  if (!amx_available()) {
    MESSAGE("AMX is not available here: not tested");
    return;
  }
  check_ways_of_reading<OnTiles<W>>(0);
}

}  // namespace

TEST_CASE("every way of reading gives the same bits on tiles: f32 weights") { check_tiles<Weights::f32>(); }
TEST_CASE("every way of reading gives the same bits on tiles: bf16 weights") { check_tiles<Weights::bf16>(); }
TEST_CASE("every way of reading gives the same bits on tiles: int8 weights") { check_tiles<Weights::int8>(); }
TEST_CASE("every way of reading gives the same bits on tiles: int4 weights") { check_tiles<Weights::int4>(); }

TEST_CASE("bf16 weights on tiles: activations are rounded to bf16") {
  if (!amx_available()) return;
  // Half a unit in the last place, 2^-9, of each activation, seen through models that magnify it less than a
  // hundredfold.
  for (const char* name : varied) {
    CAPTURE(name);
    const Golden golden = read_golden(golden_root() / name);
    const auto tiles = Model<DynamicHymba, OnTiles<Weights::bf16>>::open(golden_root() / name);
    const auto vectors = Model<DynamicHymba, OnVectors<Weights::bf16>>::open(golden_root() / name);
    const auto options = room_for(golden.ids.size());
    const double error = relative_error(full_pass(tiles, golden.ids, options), full_pass(vectors, golden.ids, options));
    CHECK(error > 0);
    CHECK(error < 0x1p-9 * 100);
  }
}

#endif
