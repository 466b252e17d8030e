// SPDX-License-Identifier: Apache-2.0
//
// Charts: well-formed whatever goes in, every point inside the plot, ticks with sensible numbers.
#include <hymba/train/curve.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "error_text.hpp"

using namespace hymba;
using text_test::contains;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// "" when the text is one well-formed element: tags nest, attributes are quoted, entities are known.
std::string xml_fault(std::string_view text) {
  std::vector<std::string> open;
  bool root_seen = false;
  const auto check_entities = [](std::string_view s) {
    for (std::size_t at = s.find('&'); at != std::string_view::npos; at = s.find('&', at + 1)) {
      const std::string_view rest = s.substr(at);
      if (!rest.starts_with("&amp;") && !rest.starts_with("&lt;") && !rest.starts_with("&gt;") &&
          !rest.starts_with("&quot;")) {
        return false;
      }
    }
    return true;
  };
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 && c != '\n') return "a control character";
  }
  if (!detail::is_utf8(text)) return "not UTF-8";
  while (!text.empty()) {
    if (text.front() != '<') {
      const std::string_view run = text.substr(0, text.find('<'));
      if (open.empty() && run.find_first_not_of('\n') != std::string_view::npos) return "text outside the root";
      if (!check_entities(run)) return "an entity in " + std::string(run);
      text.remove_prefix(run.size());
      continue;
    }
    // Attribute values may hold '>', but here they are escaped.
    const std::size_t end = text.find('>');
    if (end == std::string_view::npos) return "a tag without an end";
    std::string_view tag = text.substr(1, end - 1);
    text.remove_prefix(end + 1);
    if (tag.starts_with('/')) {
      if (open.empty() || open.back() != tag.substr(1)) return "an end tag </" + std::string(tag.substr(1));
      open.pop_back();
      continue;
    }
    if (open.empty() && root_seen) return "a second root";
    root_seen = true;
    const bool closed = tag.ends_with('/');
    if (closed) tag.remove_suffix(1);
    const std::string_view whole = tag, name = tag.substr(0, tag.find(' '));
    if (name.empty() || name.find_first_of("\"=<") != std::string_view::npos) return "a tag <" + std::string(whole);
    for (tag.remove_prefix(name.size()); !tag.empty();) {  // ` name="value"`, again and again
      const std::size_t equals = tag.find("=\"");
      const std::size_t quote = equals == std::string_view::npos ? equals : tag.find('"', equals + 2);
      if (tag.front() != ' ' || equals < 2 || quote == std::string_view::npos ||
          tag.substr(1, equals - 1).find_first_of(" \"<") != std::string_view::npos ||
          tag.substr(equals, quote - equals).find('<') != std::string_view::npos) {
        return "a tag <" + std::string(whole);
      }
      tag.remove_prefix(quote + 1);
    }
    if (!check_entities(whole)) return "an entity in <" + std::string(whole);
    if (!closed) open.emplace_back(name);
  }
  return open.empty() && root_seen ? "" : "an element without an end";
}

struct Box {
  double left, top, bottom, right;
};
/// Of the axis path "M left top V bottom H right".
Box box_of(const std::string& svg) {
  const std::string start = "class=\"axis\" d=\"M";
  const std::size_t at = svg.find(start);
  REQUIRE(at != std::string::npos);
  const char* p = svg.c_str() + at + start.size();
  double values[4];
  for (double& value : values) {
    char* next = nullptr;
    value = std::strtod(p, &next);
    REQUIRE(next != p);
    p = next + 1;
  }
  return {values[0], values[1], values[2], values[3]};
}

struct Pixel {
  double x, y;
};
/// Corners of the lines of a series behind the legend, one list a run.
std::vector<std::vector<Pixel>> lines_of(const std::string& svg, int series) {
  std::vector<std::vector<Pixel>> out;
  const std::size_t plot = svg.find("class=\"axis\"");
  const std::string start = "<path class=\"line c" + std::to_string(series) + "\" d=\"";
  const std::size_t at = svg.find(start, plot);
  if (at == std::string::npos) return out;
  const char* p = svg.c_str() + at + start.size();
  while (*p == 'M' || *p == 'L') {
    if (*p == 'M') out.emplace_back();
    char* next = nullptr;
    const double x = std::strtod(p + 1, &next);
    const double y = std::strtod(next, &next);
    out.back().push_back({x, y});
    p = next;
  }
  CHECK(*p == '"');
  return out;
}
std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}
/// Texts of the ticks: of the y axis right-aligned, of the x axis in the middle.
std::vector<std::string> ticks_of(const std::string& svg, const std::string& anchor) {
  std::vector<std::string> out;
  const std::string soft = "<text class=\"soft\"", behind = "text-anchor=\"" + anchor + "\">";
  for (std::size_t at = svg.find(soft); at != std::string::npos; at = svg.find(soft, at + 1)) {
    const std::size_t end = svg.find('>', at) + 1, begin = end - behind.size();
    if (svg.compare(begin, behind.size(), behind) == 0) out.push_back(svg.substr(end, svg.find('<', end) - end));
  }
  return out;
}

void check_chart(const std::string& svg, std::size_t series) {
  CHECK(xml_fault(svg) == "");
  CHECK(!contains(svg, "nan"));
  CHECK(!contains(svg, "inf"));
  const Box box = box_of(svg);
  CHECK(box.left < box.right);
  CHECK(box.top < box.bottom);
  for (std::size_t i = 0; i < series; ++i) {
    for (const auto& line : lines_of(svg, static_cast<int>(i))) {
      CHECK(line.size() >= 2);
      for (const Pixel& p : line) {
        CHECK(p.x >= box.left);
        CHECK(p.x <= box.right);
        CHECK(p.y >= box.top);
        CHECK(p.y <= box.bottom);
      }
    }
  }
  const std::size_t x = ticks_of(svg, "middle").size(), y = ticks_of(svg, "end").size();
  CHECK(x >= 2);
  CHECK(x <= 24);
  CHECK(y >= 2);
  CHECK(y <= 24);
}

Chart one_series(std::vector<ChartPoint> points) { return {"t", "x", "y", {{"s", std::move(points)}}}; }

}  // namespace

TEST_CASE("the checker of this test sees faults") {
  CHECK(xml_fault("<a><b c=\"d\"/>e &amp; f</a>\n") == "");
  for (const char* bad : {"", "<a>", "<a></b>", "<a b=c/>", "<a b=\"<\"/>", "<a>&</a>", "<a b=\"&x\"/>", "<a/><b/>",
                          "x<a/>", "<a>\x01</a>", "<a>\xff</a>", "<a"}) {
    CHECK(xml_fault(bad) != "");
  }
}

TEST_CASE("points land where they belong") {
  Chart chart = one_series({{0, 0}, {50, 10}, {100, 5}});
  std::string svg = chart_svg(chart);
  check_chart(svg, 1);
  auto lines = lines_of(svg, 0);
  REQUIRE(lines.size() == 1);
  REQUIRE(lines[0].size() == 3);
  const auto& p = lines[0];
  CHECK(p[1].x == doctest::Approx((p[0].x + p[2].x) / 2).epsilon(1e-4));
  CHECK(p[2].y == doctest::Approx((p[0].y + p[1].y) / 2).epsilon(1e-4));
  CHECK(p[0].y > p[1].y);  // up is smaller in SVG
  CHECK(ticks_of(svg, "middle") == std::vector<std::string>{"0", "20", "40", "60", "80", "100"});
  CHECK(ticks_of(svg, "end") == std::vector<std::string>{"0", "2", "4", "6", "8", "10"});
  CHECK(count(svg.substr(svg.find("class=\"mark c0\"")), "a3 3") == 6);  // two arcs a mark

  chart = one_series({{1, 1}, {10, 2}, {100, 3}});
  chart.log_x = true;
  svg = chart_svg(chart);
  check_chart(svg, 1);
  lines = lines_of(svg, 0);
  CHECK(lines[0][1].x == doctest::Approx((lines[0][0].x + lines[0][2].x) / 2).epsilon(1e-4));
  CHECK(ticks_of(svg, "middle") == std::vector<std::string>{"1", "2", "5", "10", "20", "50", "100"});

  // Error bars count for the range, and are inside.
  chart = one_series({{0, 0, 100}, {1, 0, 0}, {2, 0, -5}, {3, 0, kNan}});
  svg = chart_svg(chart);
  check_chart(svg, 1);
  CHECK(count(svg, "class=\"line thin c0\"") == 1);
  CHECK(ticks_of(svg, "end") == std::vector<std::string>{"-100", "-50", "0", "50", "100"});
}

TEST_CASE("numbers of ticks") {
  const auto y_ticks = [](double low, double high) {
    return ticks_of(chart_svg(one_series({{0, low}, {1, high}})), "end");
  };
  using Texts = std::vector<std::string>;
  CHECK(y_ticks(2, 3.1) == Texts{"2.0", "2.2", "2.4", "2.6", "2.8", "3.0"});
  CHECK(y_ticks(0, 3e-4) == Texts{"0", "5e-5", "1e-4", "1.5e-4", "2e-4", "2.5e-4", "3e-4"});
  CHECK(y_ticks(0, 1500) == Texts{"0", "500", "1000", "1500"});
  CHECK(y_ticks(0, 20000) == Texts{"0", "5k", "10k", "15k", "20k"});
  CHECK(y_ticks(0, 3e6) == Texts{"0", "500k", "1M", "1.5M", "2M", "2.5M", "3M"});
  CHECK(y_ticks(1e20, 3e20) == Texts{"1e20", "1.5e20", "2e20", "2.5e20", "3e20"});
  CHECK(y_ticks(-0.5, 0.5) == Texts{"-0.4", "-0.2", "0", "0.2", "0.4"});
}

TEST_CASE("whatever goes in, the chart is well-formed") {
  const std::vector<std::vector<ChartPoint>> inputs = {
      {},
      {{kNan, kNan}},
      {{1, kNan}, {kInfinity, 2}, {3, -kInfinity}},
      {{1, 1}},
      {{0, 0}, {0, 0}},
      {{1, 5}, {2, 5}},
      {{1, kNan}, {2, 3}, {3, kNan}, {4, 4}, {5, 5}, {6, kInfinity}},
      {{-1, 1}, {0, 2}, {1, 3}},
      {{1, 1e300}, {2, -1e300}},
      {{1, 1e308}, {2, -1e308}},
      {{1e-300, 1e-300}, {1e300, 2e-300}},
      {{1, 1}, {1 + 1e-15, 1 + 1e-15}},
      {{5e-324, 5e-324}, {1e-323, 1e-323}},
      {{3, 1}, {1, 2}, {2, 3}},
      {{1, 1, 1e300}, {2, 2, kInfinity}},
      {{123456789, 1}, {123456790, 2}},
      {{2e5, 1}, {3e5, 2}},
      {{1e15, 1}, {2e15, 2}},
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    for (const bool log_x : {false, true}) {
      for (const int width : {800, 0, 5000}) {
        CAPTURE(i);
        CAPTURE(log_x);
        CAPTURE(width);
        Chart chart = one_series(inputs[i]);
        chart.log_x = log_x;
        chart.width = width;
        chart.height = width / 2 - 5;
        const std::string svg = chart_svg(chart);
        check_chart(svg, 1);
        const bool any = std::any_of(inputs[i].begin(), inputs[i].end(), [&](const ChartPoint& p) {
          return std::abs(p.x) <= 1e300 && std::abs(p.y) <= 1e300 && (!log_x || p.x >= 1e-300);
        });
        CHECK(contains(svg, "no data") == !any);
      }
    }
  }
  check_chart(chart_svg({}), 0);
  // A gap ends a line; a point between two gaps is a mark.
  const std::string svg = chart_svg(one_series({{1, 1}, {2, 2}, {3, kNan}, {4, 4}, {5, kNan}, {6, 6}, {7, 7}}));
  CHECK(lines_of(svg, 0).size() == 2);
}

TEST_CASE("names are escaped, many series are told apart") {
  Chart chart{"<title> & \"more\" 'x' \xff\x01\xef\xbf\xbf", "a<b", "c&d", {}};
  for (int i = 0; i < 30; ++i) chart.series.push_back({"</svg><s&" + std::to_string(i), {{0, 1.0 * i}, {1, 2.0 * i}}});
  chart.series.push_back({"", {{0, 0}, {1, 1}}});
  const std::string svg = chart_svg(chart);
  check_chart(svg, 0);
  CHECK(contains(svg, "&lt;title&gt; &amp; &quot;more&quot; 'x' \xef\xbf\xbd \xef\xbf\xbd</title>"));
  CHECK(count(svg, "&lt;/svg&gt;&lt;s&amp;") == 30);
  CHECK(count(svg, "class=\"line c0\"") == 2);  // legend and line
  CHECK(count(svg, "class=\"line c0 d1\"") == 2);
  CHECK(count(svg, "class=\"line c7 d2\"") == 2);
}

TEST_CASE("a long run stays a short text and keeps its extremes") {
  std::mt19937 random(3);
  std::vector<ChartPoint> points;
  for (int i = 0; i < 300'000; ++i) {
    points.push_back({1.0 * i, 3 + static_cast<double>(random() % 1000) * 1e-4});
  }
  points[123'456].y = 9;
  points[200'000].y = -9;
  const std::string svg = chart_svg(one_series(points));
  CHECK(svg.size() < 60'000);
  check_chart(svg, 1);
  const auto line = lines_of(svg, 0).at(0);
  const auto by_y = [](const Pixel& a, const Pixel& b) { return a.y < b.y; };
  const auto [top, bottom] = std::minmax_element(line.begin(), line.end(), by_y);
  const Box box = box_of(svg);
  const double width = line.back().x - line.front().x;
  CHECK(std::abs(top->x - (line.front().x + width * 123'456 / 299'999)) < 0.02);
  CHECK(std::abs(bottom->x - (line.front().x + width * 200'000 / 299'999)) < 0.02);
  CHECK(top->y - box.top < 0.05 * (box.bottom - box.top));
  CHECK(std::is_sorted(line.begin(), line.end(), [](const Pixel& a, const Pixel& b) { return a.x < b.x; }));
}

TEST_CASE("loss curves from logs") {
  std::vector<RunLogRow> rows;
  for (std::int64_t step = 1; step <= 20; ++step) {
    RunLogRow row{.step = step, .tokens = 100 * step, .loss = 1.0 / static_cast<double>(step)};
    if (step % 5 == 0) row.validation_loss = 2.0 / static_cast<double>(step);
    rows.push_back(row);
  }
  const ChartSeries train = run_series("train", rows, &RunLogRow::loss);
  const ChartSeries validation = run_series("validation", rows, &RunLogRow::validation_loss, /*over_tokens=*/false);
  REQUIRE(train.points.size() == 20);
  REQUIRE(validation.points.size() == 4);
  CHECK(train.points[2].x == 300);
  CHECK(validation.points[1].x == 10);
  CHECK(validation.points[1].y == 0.2);
  const std::string svg = loss_curve_svg({train, validation}, {.title = "Two", .x_label = "steps", .log_x = true});
  check_chart(svg, 2);
  CHECK(contains(svg, ">Two<"));
  CHECK(contains(svg, ">steps<"));
  CHECK(contains(svg, "prefers-color-scheme:dark"));
  check_chart(loss_curve_svg({}), 0);
}
