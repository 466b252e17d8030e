// SPDX-License-Identifier: Apache-2.0
//
// Snapshot blobs from anywhere: refused with SnapshotError, or restored into a session that works. Half of the inputs
// get a valid header around random payload, so that the fuzzer is not stopped by the checksum.
#include <hymba/model/model.hpp>
#include <hymba/model/random_weights.hpp>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

struct Small {
  using attention = hymba::AttentionHeads<2, 1, 4, 4>;
  using ssm = hymba::MambaHeads<8, 2, 3, 1>;
  using mlp = hymba::SwiGlu<4>;
  using meta = hymba::MetaTokens<2>;
  using spans = hymba::GlobalAt<0>::otherwise<hymba::Window<3>>;
  using sharing = hymba::ShareAdjacentWindows<2>;
  static constexpr int width = 4, layers = 3, vocabulary = 7;
};
using SmallModel = hymba::Model<Small, hymba::Cpu<hymba::Weights::f32, hymba::Cache::int8>>;

const SmallModel& model() {
  static const SmallModel m(hymba::architecture<Small>, hymba::random_tensors(hymba::architecture<Small>, 1));
  return m;
}

void try_blob(std::span<const std::byte> blob) {
  try {
    auto session = model().restore(blob, {.max_context = 16, .threads = 1, .prefill_chunk = 4});
    if (session.room() > 0) session.decode(1);
  } catch (const hymba::SnapshotError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data), size);
  if (input[0] < std::byte{128}) {
    try_blob(input.subspan(1));
    return 0;
  }
  // A real snapshot with the input written over the start of its payload, under a header that fits.
  auto session = model().session({.max_context = 16, .threads = 1, .prefill_chunk = 4});
  for (hymba::Token t = 0; t < (data[0] & 7); ++t) session.decode(t % 7);
  std::vector<std::byte> blob = session.snapshot();
  const std::size_t header = sizeof(hymba::detail::SnapshotHeader);
  std::vector<std::byte> payload(blob.begin() + static_cast<std::ptrdiff_t>(header), blob.end());
  if (size - 1 > payload.size()) payload.resize(size - 1);
  std::memcpy(payload.data(), input.data() + 1, size - 1);
  if (size > 3) payload.resize(payload.size() - data[1] % 8);
  hymba::detail::SnapshotWriter writer(payload.size());
  writer.bytes(payload.data(), payload.size());
  try_blob(std::move(writer).finish(model().fingerprint(), "int8"));
  return 0;
}
