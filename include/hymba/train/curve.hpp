// SPDX-License-Identifier: Apache-2.0
//
// Line charts as SVG: loss curves and the results of studies. The text stands alone (no script, no font, no link) and
// is readable on light and dark backgrounds.
#pragma once

#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>
#include <hymba/text/utf8.hpp>
#include <hymba/train/run_log.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HYMBA_NAMESPACE_BEGIN

/// A point that is not finite (or not positive on a logarithmic axis) is not drawn and interrupts the line.
struct ChartPoint {
  double x = 0, y = 0;
  double error = 0;  ///< half the length of an error bar, drawn when positive
};

struct ChartSeries {
  std::string name;  ///< for the legend
  std::vector<ChartPoint> points;
};

struct Chart {
  std::string title, x_label, y_label;
  std::vector<ChartSeries> series;
  bool log_x = false;
  int width = 800, height = 480;  ///< in pixels, at least 320 x 240
};

namespace detail {

/// Text as XML holds it: markup escaped, characters that XML 1.0 does not allow and bytes that are not UTF-8 replaced.
inline std::string xml_text(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    const char32_t c = step.code_point;
    if (step.kind != Utf8::character || c == 0xfffe || c == 0xffff) {
      out += kReplacementCharacter;
    } else if (c < 0x20 || c == 0x7f) {
      out += ' ';
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else {
      out += text.substr(0, step.length);
    }
    text.remove_prefix(step.length);
  }
  return out;
}

/// With `digits` digits behind the point.
inline std::string fixed_text(double value, int digits) {
  char text[400];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, digits);
  return {text, end};
}

/// The same without zeros at the end.
inline std::string short_text(double value, int digits) {
  std::string out = fixed_text(value, digits);
  if (out.find('.') != std::string::npos) {
    out.erase(out.find_last_not_of('0') + 1);
    if (out.back() == '.') out.pop_back();
  }
  return out == "-0" ? "0" : out;
}

/// A number on an axis whose ticks are `step` apart: 0.25, 1500, 20k, 1.5M, 3e-5. `largest` is that of the axis, so
/// that all ticks share a form.
inline std::string tick_text(double value, double step, double largest) {
  constexpr std::array<std::pair<double, const char*>, 4> units{{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}}};
  if (value == 0) return "0";
  const auto digits_for = [](double s) { return std::max(0, static_cast<int>(-std::floor(std::log10(s) + 1e-6))); };
  if (largest >= 1e15 || largest < 1e-3) {
    const double exponent = std::floor(std::log10(std::abs(value)) + 1e-9), scale = std::pow(10.0, exponent);
    return short_text(value / scale, std::min(digits_for(step / scale), 6)) + 'e' + short_text(exponent, 0);
  }
  if (largest >= 1e4) {
    for (const auto& [unit, name] : units) {
      if (std::abs(value) >= unit) return short_text(value / unit, std::min(digits_for(step / unit), 6)) + name;
    }
  }
  return fixed_text(value, std::min(digits_for(step), 12));
}

struct ChartTick {
  double value;
  std::string text;
};

/// One axis: the range of values, the pixels it fills, the ticks within.
class ChartAxis {
 public:
  /// Widens the range so that it is not empty and nothing lies on the frame.
  ChartAxis(double low, double high, bool logarithmic, double margin, int most_ticks) : logarithmic_(logarithmic) {
    low_ = scaled(low);
    high_ = scaled(high);
    if (!(high_ - low_ > 1e-290)) {
      const double around = logarithmic ? 0.5 : std::max(std::abs(low_) * 0.1, 1e-9);
      low_ -= around;
      high_ += around;
    } else {
      const double more = (high_ - low_) * margin;
      low_ -= more;
      high_ += more;
    }
    if (logarithmic) {
      ticks_of_decades(most_ticks);
    }
    if (ticks_.size() < 2) ticks_of_steps(most_ticks);
  }
  void place(double first_pixel, double last_pixel) {
    first_ = first_pixel;
    last_ = last_pixel;
  }
  double pixel(double value) const { return first_ + (scaled(value) - low_) / (high_ - low_) * (last_ - first_); }
  const std::vector<ChartTick>& ticks() const { return ticks_; }

 private:
  double scaled(double value) const { return logarithmic_ ? std::log10(value) : value; }

  /// 1, 2, 5 of every decade, or fewer.
  void ticks_of_decades(int most) {
    constexpr std::array<double, 3> within{1, 2, 5};
    const int first = static_cast<int>(std::floor(low_)), last = static_cast<int>(std::ceil(high_));
    const double decades = high_ - low_;
    const std::size_t each = decades * 3 <= most ? 3 : 1;
    const int stride = std::max(1, static_cast<int>(std::ceil(decades / most)));
    for (int decade = first; decade <= last; ++decade) {
      if ((decade - first) % stride != 0) continue;
      for (std::size_t i = 0; i < each; ++i) {
        const double value = within[i] * std::pow(10.0, decade), at = std::log10(value);
        if (at < low_ - 1e-9 || at > high_ + 1e-9) continue;
        ticks_.push_back({value, tick_text(value, value, value)});
      }
    }
  }

  /// Multiples of 1, 2 or 5 times a power of ten; on a logarithmic axis, of less than a decade, of its values.
  void ticks_of_steps(int most) {
    ticks_.clear();
    const double low = logarithmic_ ? std::pow(10.0, low_) : low_, high = logarithmic_ ? std::pow(10.0, high_) : high_;
    const double rough = (high - low) / most, power = std::pow(10.0, std::floor(std::log10(rough)));
    double step = 10 * power;
    for (const double factor : {5.0, 2.0, 1.0}) {
      if (factor * power >= rough) step = factor * power;
    }
    const double largest = std::max(std::abs(low), std::abs(high));
    const double begin = std::ceil(low / step - 1e-9);
    for (int i = 0; i <= 2 * most && (begin + i) * step <= high + 1e-9 * step; ++i) {
      const double value = (begin + i) * step;
      ticks_.push_back({value, tick_text(value, step, largest)});
    }
  }

  bool logarithmic_;
  double low_ = 0, high_ = 1, first_ = 0, last_ = 1;
  std::vector<ChartTick> ticks_;
};

/// Draws one chart.
class ChartDrawing {
 public:
  explicit ChartDrawing(const Chart& chart)
      : chart_(chart),
        width_(std::clamp(chart.width, 320, 10'000)),
        height_(std::clamp(chart.height, 240, 10'000)),
        x_(make_axis(false)),
        y_(make_axis(true)) {}

  std::string svg() {
    top_ = chart_.title.empty() ? 16 : 44;
    std::string legend = draw_legend();  // moves top_
    std::size_t longest = 1;
    for (const ChartTick& tick : y_.ticks()) longest = std::max(longest, tick.text.size());
    left_ = 16 + 7.0 * static_cast<double>(longest) + (chart_.y_label.empty() ? 0 : 22);
    right_ = width_ - 24;
    bottom_ = height_ - (chart_.x_label.empty() ? 32 : 54);
    x_.place(left_, right_);
    y_.place(bottom_, top_);

    out_ = message("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", width_, ' ', height_, "\" width=\"",
                   width_, "\" height=\"", height_, "\" role=\"img\" font-family=\"system-ui, sans-serif\" ",
                   "font-size=\"12\">\n<title>", xml_text(chart_.title.empty() ? "Chart" : chart_.title), "</title>\n");
    out_ += style();
    add("<rect class=\"back\" width=\"", width_, "\" height=\"", height_, "\"/>\n");
    if (!chart_.title.empty()) {
      add("<text class=\"ink\" x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"600\">", xml_text(chart_.title),
          "</text>\n");
    }
    out_ += legend;
    draw_axes();
    if (!any_) {
      add("<text class=\"soft\" x=\"", px((left_ + right_) / 2), "\" y=\"", px((top_ + bottom_) / 2),
          "\" text-anchor=\"middle\">no data</text>\n");
    }
    for (std::size_t i = 0; i < chart_.series.size(); ++i) draw_series(i);
    out_ += "</svg>\n";
    return std::move(out_);
  }

 private:
  static constexpr std::size_t kColours = 8;
  /// Beyond this a difference of two values could leave the range of a double.
  static constexpr double kLargest = 1e300;

  struct Pixel {
    double x, y;
  };

  bool drawn(const ChartPoint& p) const {
    return std::abs(p.x) <= kLargest && std::abs(p.y) <= kLargest && (!chart_.log_x || p.x >= 1e-300);
  }
  static double error_of(const ChartPoint& p) { return p.error > 0 && p.error <= kLargest ? p.error : 0; }

  ChartAxis make_axis(bool vertical) {
    double low = 0, high = 0;
    any_ = false;
    for (const ChartSeries& series : chart_.series) {
      for (const ChartPoint& p : series.points) {
        if (!drawn(p)) continue;
        const double middle = vertical ? p.y : p.x, around = vertical ? error_of(p) : 0;
        low = any_ ? std::min(low, middle - around) : middle - around;
        high = any_ ? std::max(high, middle + around) : middle + around;
        any_ = true;
      }
    }
    if (!any_) low = chart_.log_x && !vertical ? 1 : 0, high = chart_.log_x && !vertical ? 10 : 1;
    const int room = vertical ? height_ / 60 : width_ / 90;
    return ChartAxis(low, high, chart_.log_x && !vertical, vertical ? 0.05 : 0.02, std::clamp(room, 3, 12));
  }

  /// Entries in rows below the title; widths are estimated, for no font is known.
  std::string draw_legend() {
    std::string legend;
    double x = 16, y = top_ + 4;
    bool first = true;
    for (std::size_t i = 0; i < chart_.series.size(); ++i) {
      if (chart_.series[i].name.empty()) continue;
      const std::string& name = chart_.series[i].name;
      const auto characters = std::count_if(name.begin(), name.end(), [](char c) { return (c & 0xc0) != 0x80; });
      const double width = 40 + 7.2 * static_cast<double>(characters);
      if (!first && x + width > width_ - 16) {
        x = 16;
        y += 20;
      }
      first = false;
      legend += message("<path class=\"line ", colour(i), "\" d=\"M", px(x), ' ', px(y - 4), 'h', 20, "\"/>",
                        "<text class=\"ink\" x=\"", px(x + 26), "\" y=\"", px(y), "\">", xml_text(name), "</text>\n");
      x += width;
    }
    if (!first) top_ = std::min(y + 16, height_ / 2.0);
    return legend;
  }

  void draw_axes() {
    for (const ChartTick& tick : y_.ticks()) {
      const double y = y_.pixel(tick.value);
      add("<path class=\"grid\" d=\"M", px(left_), ' ', px(y), 'H', px(right_), "\"/><text class=\"soft\" x=\"",
          px(left_ - 8), "\" y=\"", px(y + 4), "\" text-anchor=\"end\">", tick.text, "</text>\n");
    }
    for (const ChartTick& tick : x_.ticks()) {
      const double x = x_.pixel(tick.value);
      add("<path class=\"grid\" d=\"M", px(x), ' ', px(top_), 'V', px(bottom_), "\"/><text class=\"soft\" x=\"", px(x),
          "\" y=\"", px(bottom_ + 18), "\" text-anchor=\"middle\">", tick.text, "</text>\n");
    }
    add("<path class=\"axis\" d=\"M", px(left_), ' ', px(top_), 'V', px(bottom_), 'H', px(right_), "\"/>\n");
    if (!chart_.x_label.empty()) {
      add("<text class=\"ink\" x=\"", px((left_ + right_) / 2), "\" y=\"", px(height_ - 12.0),
          "\" text-anchor=\"middle\">", xml_text(chart_.x_label), "</text>\n");
    }
    if (!chart_.y_label.empty()) {
      add("<text class=\"ink\" transform=\"translate(20 ", px((top_ + bottom_) / 2),
          ") rotate(-90)\" text-anchor=\"middle\">", xml_text(chart_.y_label), "</text>\n");
    }
  }

  void draw_series(std::size_t index) {
    const std::vector<ChartPoint>& points = chart_.series[index].points;
    const auto shown = std::count_if(points.begin(), points.end(), [&](const ChartPoint& p) { return drawn(p); });
    std::string line, bars, marks;
    std::vector<Pixel> run;
    const auto end_run = [&] {
      if (run.size() == 1) marks += mark(run[0]);  // a line of one point would not be seen
      if (run.size() > 1) append_line(run, line);
      run.clear();
    };
    for (const ChartPoint& p : points) {
      if (!drawn(p)) {
        end_run();
        continue;
      }
      const Pixel at{x_.pixel(p.x), y_.pixel(p.y)};
      if (const double error = error_of(p); error > 0) {
        bars +=
            message('M', px(at.x), ' ', px(y_.pixel(p.y - error)), 'V', px(y_.pixel(p.y + error)), 'M', px(at.x - 4),
                    ' ', px(y_.pixel(p.y - error)), "h8M", px(at.x - 4), ' ', px(y_.pixel(p.y + error)), "h8");
      }
      run.push_back(at);
      if (shown <= 30) marks += mark(at);
    }
    end_run();
    if (!bars.empty()) add("<path class=\"line thin ", colour(index), "\" d=\"", bars, "\"/>\n");
    if (!line.empty()) add("<path class=\"line ", colour(index), "\" d=\"", line, "\"/>\n");
    if (!marks.empty()) add("<path class=\"mark ", colour(index), "\" d=\"", marks, "\"/>\n");
  }

  /// Of the points in one column of pixels only the first, the lowest, the highest and the last are kept: the line
  /// looks the same and its text stays short, however long the run.
  static void append_line(const std::vector<Pixel>& run, std::string& line) {
    bool first = true;
    const auto put = [&](const Pixel& p) {
      line += message(first ? 'M' : 'L', px(p.x), ' ', px(p.y));
      first = false;
    };
    for (std::size_t begin = 0, end = 0; begin < run.size(); begin = end) {
      for (end = begin; end < run.size() && std::floor(run[end].x) == std::floor(run[begin].x);) ++end;
      const auto from = run.begin() + static_cast<std::ptrdiff_t>(begin);
      const auto to = run.begin() + static_cast<std::ptrdiff_t>(end);
      if (end - begin <= 4) {
        std::for_each(from, to, put);
        continue;
      }
      const auto by_y = [](const Pixel& a, const Pixel& b) { return a.y < b.y; };
      auto [low, high] = std::minmax_element(from, to, by_y);
      if (high < low) std::swap(low, high);
      put(*from);
      if (low != from) put(*low);
      if (high != low && high != to - 1) put(*high);
      put(*(to - 1));
    }
  }

  static std::string mark(const Pixel& p) {
    return message('M', px(p.x - 3), ' ', px(p.y), "a3 3 0 1 0 6 0a3 3 0 1 0 -6 0");
  }

  static std::string px(double value) { return short_text(value, 2); }
  static std::string colour(std::size_t i) {
    return message('c', i % kColours,
                   i >= kColours ? " d" + std::to_string(std::min<std::size_t>(i / kColours, 2)) : "");
  }

  /// Colours that people with any colour vision can tell apart (after Okabe and Ito), for either background.
  static std::string style() {
    constexpr std::array<const char*, kColours> light{"#0072b2", "#c04f00", "#00845f", "#a8487f",
                                                      "#8a6d00", "#2b8cc4", "#444444", "#7a4fc0"};
    constexpr std::array<const char*, kColours> dark{"#5cb8f0", "#ff9a57", "#3fd0a2", "#ee9fcb",
                                                     "#f0d44c", "#9ad4f7", "#c8c8c8", "#bda2f2"};
    const auto colours = [](const auto& list) {
      std::string out;
      for (std::size_t i = 0; i < list.size(); ++i) {
        out += message(".line.c", i, "{stroke:", list[i], "}.mark.c", i, "{fill:", list[i], '}');
      }
      return out;
    };
    return message(
        "<style>\n.back{fill:#ffffff}.ink{fill:#1f2328}.soft{fill:#59636e}.grid{stroke:#d9dee4;fill:none}"
        ".axis{stroke:#818b98;fill:none}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}"
        ".line.thin{stroke-width:1.2}.line.d1{stroke-dasharray:7 3}.line.d2{stroke-dasharray:2 3}\n",
        colours(light),
        "\n@media (prefers-color-scheme:dark){.back{fill:#0d1117}.ink{fill:#f0f6fc}.soft{fill:#9198a1}"
        ".grid{stroke:#2a313a}.axis{stroke:#656c76}\n",
        colours(dark), "}\n</style>\n");
  }

  template <class... Parts>
  void add(const Parts&... parts) {
    out_ += message(parts...);
  }

  const Chart& chart_;
  int width_, height_;
  bool any_ = false;  ///< set by make_axis
  ChartAxis x_, y_;
  double left_ = 0, right_ = 0, top_ = 0, bottom_ = 0;
  std::string out_;
};

}  // namespace detail

/// A chart as the text of an SVG file. Any input gives a well-formed one: without points it says so.
inline std::string chart_svg(const Chart& chart) { return detail::ChartDrawing(chart).svg(); }

/// One column of a run's log over tokens or steps; steps at which it was not measured are left out.
inline ChartSeries run_series(std::string name, std::span<const RunLogRow> rows, double RunLogRow::*column,
                              bool over_tokens = true) {
  ChartSeries out{std::move(name), {}};
  for (const RunLogRow& row : rows) {
    if (!std::isnan(row.*column)) {
      out.points.push_back({static_cast<double>(over_tokens ? row.tokens : row.step), row.*column, 0});
    }
  }
  return out;
}

struct LossCurveOptions {
  std::string title = "Loss";
  std::string x_label = "tokens";
  bool log_x = false;
};

/// Loss over training, a line for each series.
inline std::string loss_curve_svg(std::vector<ChartSeries> series, const LossCurveOptions& options = {}) {
  Chart chart{options.title, options.x_label, "loss (nats per token)", std::move(series)};
  chart.log_x = options.log_x;
  return chart_svg(chart);
}

HYMBA_NAMESPACE_END
