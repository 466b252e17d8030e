// SPDX-License-Identifier: Apache-2.0
#include <hymba/io/atomic_file.hpp>

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <unistd.h>

using namespace hymba;

namespace {
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("hymba_atomic_" + std::to_string(::getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
};
std::string content(const std::filesystem::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}
std::ptrdiff_t files_in(const std::filesystem::path& folder) {
  return std::distance(std::filesystem::directory_iterator(folder), {});
}
}  // namespace

TEST_CASE("the target changes at commit, and only then") {
  const Folder folder;
  const auto target = folder.path / "file";
  for (const char* text : {"first", "second"}) {
    const std::string before = content(target);
    {
      AtomicFile abandoned(target);
      abandoned.write(std::string_view("half"));
    }
    CHECK(content(target) == before);
    AtomicFile file(target);
    file.write(std::string_view(text));
    CHECK(content(target) == before);
    file.commit();
    CHECK(content(target) == text);
    CHECK(files_in(folder.path) == 1);
  }
}

TEST_CASE("devices and folders are not replaced") {
  const Folder folder;
  CHECK_THROWS_WITH_AS(AtomicFile("/dev/null"), "cannot write /dev/null: it exists and is not a regular file", IoError);
  CHECK_THROWS_AS(AtomicFile(folder.path), IoError);
  CHECK_THROWS_AS(AtomicFile(folder.path / "missing" / "file"), IoError);
  CHECK(files_in(folder.path) == 0);
}
