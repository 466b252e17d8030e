// SPDX-License-Identifier: Apache-2.0
//
// The emitted types: tests/golden/emitted_variants.inc is what emit_variant writes today, and it compiles to the same
// architectures. HYMBA_WRITE_EMITTED=FILE in the environment writes it anew.
#include <hymba/io/config.hpp>
#include <hymba/io/emit_variant.hpp>
#include <hymba/variant/presets.hpp>

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace emitted {
#include "../golden/emitted_variants.inc"
}

using namespace hymba;
namespace fs = std::filesystem;

static_assert(same_architecture(architecture<emitted::Published>.describe(),
                                architecture<presets::Hymba1_5B>.describe()));
static_assert(parameters<emitted::Published>() == 1'522'797'824);
static_assert(same_architecture(architecture<emitted::Bare>.describe(), architecture<presets::Barebones>.describe()));

namespace {
Description golden(const char* name) { return read_config(fs::path(HYMBA_TEST_DATA) / "golden" / name); }

/// Spans of several sizes, groups that no rule of ours makes, kinds without a period.
Description irregular() {
  Description d = golden("hymba_tiny");
  d.layers = d.plan.layers = 8;
  const int windows[] = {4, 4, 0, 8, 4, 0, 8, 8}, sources[] = {0, 0, 2, 3, 0, 2, 6, 3};
  for (int i = 0; i < 8; ++i)
    d.plan[i] = {i == 3 || i == 4 ? LayerKind::attention : LayerKind::hybrid, windows[i], sources[i]};
  d.rms_eps = 1.25e-5;
  return d;
}

Description deep() {
  Description d = architecture<presets::Hymba1_5B>.describe();
  for (int i = 0; i < d.layers; ++i) d.plan[i] = {LayerKind::hybrid, i % 3, i};
  return d;
}

std::string everything() {
  return "// Written by test_io_emit.\n" + emit_variant(architecture<presets::Hymba1_5B>.describe(), "Published") +
         emit_variant(architecture<presets::Barebones>.describe(), "Bare") + emit_variant(irregular(), "Irregular") +
         emit_variant(deep(), "Deep") + emit_variant(golden("attention_only"), "AttentionOnly") +
         emit_variant(golden("ssm_only"), "SsmOnly") + emit_variant(golden("sequential_mix"), "SequentialMix") +
         emit_variant(golden("mixed_kinds"), "MixedKinds") + emit_variant(golden("dynamic_ntk"), "DynamicNtk") +
         emit_variant(golden("kq_norm_perhead"), "PerHead") + emit_variant(golden("proj_bias_kinds"), "ProjBiasKinds") +
         emit_variant(golden("fusion_gate"), "Gate") + emit_variant(golden("global_group"), "GlobalGroup") +
         emit_variant(golden("untied_output"), "Untied");
}

template <class V>
void same_as(const Description& d) {
  CHECK(description_difference(d, architecture<V>.describe()) == "");
}
}  // namespace

TEST_CASE("the text is what the golden file holds") {
  if (const char* out = std::getenv("HYMBA_WRITE_EMITTED")) std::ofstream(out) << everything();
  std::ifstream in(fs::path(HYMBA_TEST_DATA) / "golden" / "emitted_variants.inc");
  CHECK(std::string(std::istreambuf_iterator<char>(in), {}) == everything());
}

TEST_CASE("the types are the architectures they were emitted from") {
  same_as<emitted::Irregular>(irregular());
  same_as<emitted::Deep>(deep());
  same_as<emitted::AttentionOnly>(golden("attention_only"));
  same_as<emitted::SsmOnly>(golden("ssm_only"));
  same_as<emitted::SequentialMix>(golden("sequential_mix"));
  same_as<emitted::MixedKinds>(golden("mixed_kinds"));
  same_as<emitted::DynamicNtk>(golden("dynamic_ntk"));
  same_as<emitted::PerHead>(golden("kq_norm_perhead"));
  same_as<emitted::ProjBiasKinds>(golden("proj_bias_kinds"));
  same_as<emitted::Gate>(golden("fusion_gate"));
  same_as<emitted::GlobalGroup>(golden("global_group"));
  same_as<emitted::Untied>(golden("untied_output"));
}

TEST_CASE("what has no type is refused") {
  Description d = golden("hymba_tiny");
  for (const char* name : {"", "1a", "a-b", "a b", "a::b", "\xc3\xa9"})
    CHECK_THROWS_AS(emit_variant(d, name), ArgumentError);
  CHECK(emit_variant(d, "_a1").find("struct _a1 {") != std::string::npos);
  d.rope_base = 10000.5;
  CHECK_THROWS_WITH_AS(
      emit_variant(d, "A"),
      "cannot emit a variant: rope_theta is 10000.5, expected a whole number below 2^31, which is what a "
      "type can hold",
      ConfigError);
  d.rope_base = 1e10;
  CHECK_THROWS_AS(emit_variant(d, "A"), ConfigError);
  d.rope = RopeKind::none;
  CHECK(emit_variant(d, "A").find("NoRope") != std::string::npos);
  d.fusion = "mine";
  CHECK_THROWS_WITH_AS(emit_variant(d, "A"), "cannot emit a variant: the fusion \"mine\" is none of this library's",
                       ConfigError);
  d.fusion = "sum";
  d.mlp = "mine";
  CHECK_THROWS_AS(emit_variant(d, "A"), ConfigError);
  d.mlp = "relu2";
  d.kv_heads = 3;
  CHECK_THROWS_WITH_AS(emit_variant(d, "A"),
                       "cannot emit a variant: query_heads must be a multiple of kv_heads (value 4)", ConfigError);
}
