// SPDX-License-Identifier: Apache-2.0
//
// The safetensors reader: any bytes give a FormatError or a header whose every entry lies inside the file; and every
// entry a TensorError or a tensor whose rows are as long as its type and shape say.
//
// An input that starts with 'H' is taken as a header's text up to its first zero byte and data behind it, and given the
// right length: so that mutations reach what lies behind the first eight bytes.
#include <hymba/core/tensor_check.hpp>
#include <hymba/io/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace {
void require(bool holds) {
  if (!holds) std::abort();
}

void check_tensor(const hymba::SafetensorsHeader& header, const hymba::SafetensorsEntry& e,
                  std::span<const std::byte> bytes) {
  try {
    const hymba::TensorRef t = hymba::detail::tensor_of(header, e, bytes, "fuzz");
    require(t.bytes.size() == bytes.size());
    require(hymba::detail::holds_whole_rows(t) || (hymba::is_quantised(t.dtype) && t.shape[0] == 0));
  } catch (const hymba::TensorError& error) {
    require(std::strchr(error.what(), '\n') == nullptr && std::strlen(error.what()) < 1000);
  }
}

void check(std::span<const std::byte> file) {
  hymba::SafetensorsHeader header;
  try {
    header = hymba::parse_safetensors(file, "fuzz");
  } catch (const hymba::FormatError& e) {
    require(std::strchr(e.what(), '\n') == nullptr && std::strlen(e.what()) < 1000);
    return;
  }
  std::uint64_t reached = header.data_begin;
  std::set<std::string> names;
  for (const hymba::SafetensorsEntry& e : header.entries) {
    require(names.insert(e.name).second);
    require(header.data_begin + e.begin == reached && e.begin <= e.end);
    reached = header.data_begin + e.end;
    require(reached <= file.size());
    std::uint64_t bytes = hymba::safetensors_dtype_bytes(e.dtype);
    for (const std::int64_t n : e.shape) bytes *= static_cast<std::uint64_t>(n);
    require(bytes == e.end - e.begin);
    check_tensor(header, e,
                 file.subspan(static_cast<std::size_t>(header.data_begin + e.begin), static_cast<std::size_t>(bytes)));
  }
  require(reached == file.size());
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> all(reinterpret_cast<const std::byte*>(data), size);
  if (size == 0 || data[0] != 'H') {
    check(all);
    return 0;
  }
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t length = text.substr(0, text.find('\0')).size();
  std::vector<std::byte> file(8);
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<std::byte>(length >> (8 * i) & 0xff);
  file.insert(file.end(), all.begin() + 1, all.begin() + 1 + static_cast<std::ptrdiff_t>(length));
  if (length < text.size()) file.insert(file.end(), all.begin() + 2 + static_cast<std::ptrdiff_t>(length), all.end());
  check(file);
  return 0;
}
