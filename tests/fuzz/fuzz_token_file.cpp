// SPDX-License-Identifier: Apache-2.0
//
// The token file reader: any bytes give a FormatError or a file whose every token and document lies inside it.
//
// An input that does not start with 'H' is taken as small numbers for the fields of a header and what comes behind it,
// so that inputs reach what lies behind the magic and the sizes.
#include <hymba/train/token_file.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace {
void require(bool holds) {
  if (!holds) std::abort();
}

void check(std::span<const std::byte> bytes) {
  try {
    const hymba::TokenFile file = hymba::TokenFile::view(bytes, "fuzz");
    require(file.size() > 0 && file.documents() > 0 && file.vocabulary() > 0 && file.text_bytes() >= 0);
    std::vector<hymba::Token> tokens(static_cast<std::size_t>(file.size()));
    file.read(0, file.size(), tokens.data());
    std::int64_t reached = 0;
    for (std::int64_t d = 0; d < file.documents(); ++d) {
      const hymba::DocumentRange range = file.document(d);
      require(range.first == reached && range.size() > 0);
      require(file.document_of(range.first) == d && file.document_of(range.last - 1) == d);
      reached = range.last;
    }
    require(reached == file.size());
    for (std::int64_t i = 0; i < file.size(); ++i) {
      const hymba::Token token = tokens[static_cast<std::size_t>(i)];
      require(token >= 0 && token < file.vocabulary() && token == file[i]);
    }
  } catch (const hymba::FormatError& e) {
    require(std::strchr(e.what(), '\n') == nullptr && std::strlen(e.what()) < 500);
  }
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> all(reinterpret_cast<const std::byte*>(data), size);
  constexpr std::size_t fields = 5;
  if (size < fields || data[0] == 'H') {
    check(all);
    return 0;
  }
  // The first byte chooses the width; then vocabulary (or a 512th of it), tokens, documents, bytes of text.
  const bool wide = data[0] % 2 == 0;
  const std::uint64_t vocabulary = data[1] * (wide ? 512u : 1u);
  std::vector<std::byte> file;
  for (const char c : {'H', 'Y', 'M', 'B', 'A', 'T', 'O', 'K'}) file.push_back(static_cast<std::byte>(c));
  hymba::detail::append_little(file, std::uint32_t{1});
  hymba::detail::append_little(file, std::uint32_t{vocabulary <= 65536 ? 2u : 4u});
  for (const std::uint64_t v : {vocabulary, std::uint64_t{data[2]}, std::uint64_t{data[3]}, std::uint64_t{data[4]}}) {
    hymba::detail::append_little(file, v);
  }
  file.insert(file.end(), all.begin() + fields, all.end());
  check(file);
  return 0;
}
