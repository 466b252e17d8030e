// SPDX-License-Identifier: Apache-2.0
//
// Shared by the model tests: golden checkpoints, and comparison of logits.
#pragma once

#include <hymba/hymba.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace model_test {

inline std::filesystem::path golden_root() { return std::filesystem::path(HYMBA_TEST_DATA) / "golden"; }

/// Names of all golden checkpoints: folders of tests/golden with a golden.safetensors.
inline std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_root())) {
    if (std::filesystem::exists(entry.path() / "golden.safetensors")) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct Golden {
  std::vector<hymba::Token> ids;
  std::vector<float> logits;  ///< [ids, vocabulary]
};

inline Golden read_golden(const std::filesystem::path& folder) {
  const hymba::SafetensorsFile file(folder / "golden.safetensors");
  Golden g;
  for (const auto& entry : file.entries()) {
    const auto bytes = file.bytes(entry);
    if (entry.name == "ids") {
      REQUIRE(entry.dtype == "I32");
      g.ids.resize(bytes.size() / 4);
      std::memcpy(g.ids.data(), bytes.data(), bytes.size());
    } else if (entry.name == "logits") {
      REQUIRE(entry.dtype == "F32");
      g.logits.resize(bytes.size() / 4);
      std::memcpy(g.logits.data(), bytes.data(), bytes.size());
    }
  }
  REQUIRE(!g.ids.empty());
  REQUIRE(!g.logits.empty());
  return g;
}

/// max |a - b| / max |b|; infinite when sizes differ or a number is not finite.
inline double relative_error(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
    scale = std::max(scale, std::abs(static_cast<double>(b[i])));
  }
  return worst / scale;
}

/// Logits at every position from one pass.
template <class Model>
std::vector<float> full_pass(const Model& model, std::span<const hymba::Token> ids, hymba::SessionOptions options) {
  auto session = model.session(options);
  std::vector<float> logits(ids.size() * static_cast<std::size_t>(model.architecture().vocabulary));
  session.evaluate(ids, logits);
  return logits;
}

/// The same from reading `chunk` tokens at a time.
template <class Model>
std::vector<float> pass_in_chunks(const Model& model, std::span<const hymba::Token> ids, std::size_t chunk,
                                  hymba::SessionOptions options) {
  auto session = model.session(options);
  const auto vocabulary = static_cast<std::size_t>(model.architecture().vocabulary);
  std::vector<float> logits(ids.size() * vocabulary);
  for (std::size_t at = 0; at < ids.size(); at += chunk) {
    const std::size_t count = std::min(chunk, ids.size() - at);
    session.evaluate(ids.subspan(at, count), std::span(logits).subspan(at * vocabulary, count * vocabulary));
  }
  return logits;
}

inline hymba::SessionOptions room_for(std::size_t tokens) {
  return {.max_context = static_cast<std::int64_t>(tokens), .threads = 1};
}

}  // namespace model_test
