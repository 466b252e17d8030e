// SPDX-License-Identifier: Apache-2.0
//
// The blob a session is saved to: a header that says what it is, and a payload guarded by its length and a checksum.
//
//   offset  bytes
//   0       8     magic "HYMBASNP"
//   8       4     format version
//   12      4     name of the caches' format, zeros behind it
//   16      8     fingerprint of the model
//   24      8     bytes of payload
//   32      8     checksum of the payload
//   40      ...   payload
//
// Numbers are in the machine's byte order; a blob is for the same build of the same model on the same kind of machine.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/core/quoted.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ios>
#include <iterator>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// Version of the blob; a reader accepts its own only.
inline constexpr std::uint32_t snapshot_version = 3;

namespace detail {

inline constexpr char snapshot_magic[8] = {'H', 'Y', 'M', 'B', 'A', 'S', 'N', 'P'};

struct SnapshotHeader {
  char magic[8];
  std::uint32_t version;
  char cache[4];
  std::uint64_t fingerprint;
  std::uint64_t payload_bytes;
  std::uint64_t checksum;
};
static_assert(sizeof(SnapshotHeader) == 40);

/// A 64-bit hash that any change of one word changes. Against damage, not against forgery.
inline std::uint64_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t h = 0x9e3779b97f4a7c15ull ^ bytes.size();
  std::size_t i = 0;
  for (; i < bytes.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<std::size_t>(8, bytes.size() - i));
    h = (h ^ word) * 0xff51afd7ed558ccdull;  // odd multiplier: a bijection of h for every word
    h ^= h >> 32;
  }
  return h;
}

/// Appends plain values to a growing blob whose header is filled in at the end.
class SnapshotWriter {
 public:
  explicit SnapshotWriter(std::size_t expected_bytes) {
    blob_.reserve(sizeof(SnapshotHeader) + expected_bytes);
    blob_.resize(sizeof(SnapshotHeader));
  }
  void bytes(const void* data, std::size_t count) {
    const auto* p = static_cast<const std::byte*>(data);
    blob_.insert(blob_.end(), p, p + count);
  }
  template <class T>
  void value(const T& v) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(&v, sizeof(T));
  }
  /// `cache`: the name of a cache_format.
  std::vector<std::byte> finish(std::uint64_t fingerprint, std::string_view cache) && {
    SnapshotHeader header{};
    std::memcpy(header.magic, snapshot_magic, sizeof(snapshot_magic));
    std::memcpy(header.cache, cache.data(), std::min(cache.size(), sizeof(header.cache)));
    header.version = snapshot_version;
    header.fingerprint = fingerprint;
    header.payload_bytes = blob_.size() - sizeof(header);
    header.checksum = checksum(std::span(blob_).subspan(sizeof(header)));
    std::memcpy(blob_.data(), &header, sizeof(header));
    return std::move(blob_);
  }

 private:
  std::vector<std::byte> blob_;
};

/// Reads what SnapshotWriter wrote; every read is checked against the end.
class SnapshotReader {
 public:
  /// @throws SnapshotError when the blob is not a snapshot, has another version, belongs to another model or one with
  /// caches in another format, is cut short, has bytes behind its end, or is damaged.
  SnapshotReader(std::span<const std::byte> blob, std::uint64_t fingerprint, std::string_view cache) {
    SnapshotHeader header{};
    if (blob.size() < sizeof(header)) {
      throw SnapshotError(message("snapshot: ", blob.size(), " bytes, expected at least ", sizeof(header)));
    }
    std::memcpy(&header, blob.data(), sizeof(header));
    if (std::memcmp(header.magic, snapshot_magic, sizeof(snapshot_magic)) != 0) {
      throw SnapshotError("snapshot: this is not a session snapshot (it does not begin with HYMBASNP)");
    }
    if (header.version != snapshot_version) {
      throw SnapshotError(message("snapshot: format version ", header.version, ", expected ", snapshot_version));
    }
    rest_ = blob.subspan(sizeof(header));
    if (header.payload_bytes != rest_.size()) {
      throw SnapshotError(message("snapshot: ", rest_.size(), " bytes of payload, its header says ", header.payload_bytes));
    }
    if (header.checksum != checksum(rest_)) {
      throw SnapshotError("snapshot: damaged: its checksum does not match its content");
    }
    const auto* const end = std::find(std::begin(header.cache), std::end(header.cache), '\0');
    const std::string_view held(header.cache, static_cast<std::size_t>(end - header.cache));
    if (held != cache) {
      throw SnapshotError(message("snapshot: its caches are in ", quote(held), ", this model's in ", quote(cache)));
    }
    if (header.fingerprint != fingerprint) {
      throw SnapshotError(message("snapshot: taken from another model or format of weights (fingerprint ", std::hex,
                                  header.fingerprint, ", this model has ", fingerprint, ")"));
    }
  }
  void bytes(void* to, std::size_t count) {
    if (count > rest_.size()) {
      throw SnapshotError(message("snapshot: ", count, " bytes expected, ", rest_.size(), " left"));
    }
    if (count > 0) std::memcpy(to, rest_.data(), count);
    rest_ = rest_.subspan(count);
  }
  template <class T>
  T value() {
    T v{};
    bytes(&v, sizeof(T));
    return v;
  }
  /// @throws SnapshotError when something is left.
  void finish() const {
    if (!rest_.empty()) throw SnapshotError(message("snapshot: ", rest_.size(), " bytes behind its end"));
  }
  std::size_t left() const { return rest_.size(); }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace detail

HYMBA_NAMESPACE_END
