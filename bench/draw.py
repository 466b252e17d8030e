#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the JSON of one or more runs of `hymba bench --json` as two SVG files.

    draw.py RUN.json... [--out FOLDER]

    roofline.svg  GFLOP/s of the weight matrices reached against operations per byte of memory read, under what the
                  machine reads and multiplies at most: the best limits of all runs, a roof for every unit that multiplies
    depth.svg     tokens per second while decoding against the tokens that a session holds, a line for every run and
                  size of batch

Standard library only.
"""
import argparse
import json
import math
import os
import sys
from xml.sax.saxutils import escape

# Okabe and Ito's colours, told apart by most eyes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#000000")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
INK, FAINT, GRID, PAPER = "#222222", "#666666", "#e4e4e4", "#ffffff"
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Refused(Exception):
    """A sentence for whoever called the script."""


# ---- runs


def number(row, key):
    value = row.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError("%s is %r, expected a number" % (key, value))
    return float(value)


def read_run(path):
    try:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
        limits = run["limits"]
        out = {
            "model": os.path.basename(os.path.normpath(str(run.get("model", path)))),
            "weights": str(run.get("weights", "")),
            "cache": str(run.get("cache", "")),
            "unit": str(run.get("matrix_unit", "matrix unit")),
            "bandwidth": number(limits, "read_bandwidth_gb_s"),
            "peak": number(limits, "matrix_peak_gflop_s"),
            "prefill": [{k: number(row, k) for k in ("tokens", "gflop_s", "flop_per_byte")} for row in run["prefill"]],
            "decode": [{k: number(row, k) for k in ("depth", "batch", "tokens_per_s", "gflop_s", "flop_per_byte")}
                       for row in run["decode"]],
        }
        if not out["bandwidth"] > 0 or not out["peak"] > 0:
            raise ValueError("a limit is 0")
        return out
    except OSError as error:
        raise Refused("cannot read %s: %s" % (path, error.strerror)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = "lacks " + str(error) if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise Refused("%s is not the output of hymba bench --json: %s" % (path, what)) from None


def name_runs(runs):
    """As short as tells them apart: the model, its weights, and the cache where caches differ."""
    caches = len({run["cache"] for run in runs}) > 1
    for i, run in enumerate(runs):
        run["name"] = " ".join(filter(None, (run["model"], run["weights"], run["cache"] + " cache" if caches else "")))
        run["colour"] = COLOURS[i % len(COLOURS)]


def short(n):
    """8192 -> 8k; 100 -> 100."""
    n = int(n)
    return "%dk" % (n // 1024) if n >= 1024 and n % 1024 == 0 else str(n)


# ---- drawing


class Axis:
    """From numbers to pixels, linear or logarithmic."""

    def __init__(self, low, high, first, last, log):
        self.low, self.high, self.first, self.last, self.log = low, high, first, last, log

    def at(self, value):
        f = math.log if self.log else float
        span = f(self.high) - f(self.low)
        return self.first + (self.last - self.first) * (f(value) - f(self.low)) / span

    def ticks(self):
        if not self.log:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
            step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 8)
            return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        wide = math.log10(self.high / self.low) > 2.5
        all_of = [m * 10.0 ** d for d in decades for m in ((1,) if wide else (1, 2, 5))]
        return [t for t in all_of if self.low * 0.999 <= t <= self.high * 1.001]


def depth_ticks(high):
    """Steps of a power of two: depths are."""
    step = 2 ** max(0, math.floor(math.log2(max(high, 8) / 4)))
    return [i * step for i in range(int(high // step) + 1)]


def plain(value):
    return "%g" % value if value < 10000 else "{:,.0f}".format(value)


class Picture:
    def __init__(self, width, height, title, subtitle):
        self.width, self.height, self.parts, self.boxes = width, height, [], []
        self.text(24, 32, title, size=18, weight="bold")
        self.text(24, 52, subtitle, size=12, colour=FAINT)

    def add(self, element):
        self.parts.append(element)

    def text(self, x, y, what, size=12, anchor="start", colour=INK, weight="normal", turn=0):
        place = " transform='rotate(%g %.1f %.1f)'" % (turn, x, y) if turn else ""
        self.add("<text x='%.1f' y='%.1f' font-size='%g' text-anchor='%s' fill='%s' font-weight='%s'%s>%s</text>"
                 % (x, y, size, anchor, colour, weight, place, escape(what)))

    def line(self, x1, y1, x2, y2, colour=INK, width=1.0, dash=""):
        self.add("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='%s' stroke-width='%g'%s/>"
                 % (x1, y1, x2, y2, colour, width, " stroke-dasharray='%s'" % dash if dash else ""))

    def circle(self, x, y, colour):
        self.add("<circle cx='%.1f' cy='%.1f' r='5' fill='%s' stroke='%s' stroke-width='1'/>" % (x, y, colour, PAPER))
        self.boxes.append((x - 5, y - 5, x + 5, y + 5))

    def ring(self, x, y, colour):
        self.add("<circle cx='%.1f' cy='%.1f' r='4.5' fill='%s' stroke='%s' stroke-width='2'/>" % (x, y, PAPER, colour))
        self.boxes.append((x - 5, y - 5, x + 5, y + 5))

    def roof(self, x1, y1, x2, y2):
        """A thick line that labels keep off."""
        self.line(x1, y1, x2, y2, INK, 1.6)
        steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 6))
        for i in range(steps + 1):
            x, y = x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps
            self.boxes.append((x - 2, y - 2, x + 2, y + 2))

    def diamond(self, x, y, colour):
        self.add("<path d='M%.1f %.1f l6.5 6.5 l-6.5 6.5 l-6.5 -6.5 z' fill='%s' stroke='%s' stroke-width='1'/>"
                 % (x, y - 6.5, colour, PAPER))
        self.boxes.append((x - 6, y - 6, x + 6, y + 6))

    def label(self, x, y, what, colour, inside):
        """Beside a point where nothing else stands; far from it rather than over another."""
        width, height = 6.0 * len(what), 11
        left, top, right, bottom = inside
        places = []
        for away in (9, 20, 32, 46, 62):
            places += [(x + away, y + 4), (x - away - width, y + 4), (x - width / 2, y - away), (x - width / 2, y + away + 9),
                       (x + away, y + away + 4), (x - away - width, y - away + 4), (x + away, y - away + 4),
                       (x - away - width, y + away + 4)]

        def cost(place):
            box = (place[0] - 1, place[1] - height + 1, place[0] + width + 1, place[1] + 3)
            out = box[0] < left or box[1] < top or box[2] > right or box[3] > bottom
            over = sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self.boxes)
            return (out, over, places.index(place))

        px, py = min(places, key=cost)
        self.boxes.append((px - 1, py - height + 1, px + width + 1, py + 3))
        near = (min(max(x, px), px + width), min(max(y, py - height + 3), py))
        if math.hypot(near[0] - x, near[1] - y) > 14:
            self.line(x, y, near[0], near[1], colour, 0.6)
        self.text(px, py, what, size=11, colour=colour)

    def frame(self, x, y, x_name, y_name, x_ticks, y_ticks, x_text=plain):
        for t in y_ticks:
            self.line(x.first, y.at(t), x.last, y.at(t), GRID)
            self.text(x.first - 8, y.at(t) + 4, plain(t), anchor="end", colour=FAINT)
        for t in x_ticks:
            self.line(x.at(t), y.first, x.at(t), y.last, GRID)
            self.text(x.at(t), y.first + 18, x_text(t), anchor="middle", colour=FAINT)
        self.line(x.first, y.first, x.last, y.first, FAINT)
        self.line(x.first, y.first, x.first, y.last, FAINT)
        self.text((x.first + x.last) / 2, y.first + 40, x_name, size=13, anchor="middle")
        self.text(28, (y.first + y.last) / 2, y_name, size=13, anchor="middle", turn=-90)

    def svg(self):
        head = ("<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' viewBox='0 0 %d %d' %s>"
                % (self.width, self.height, self.width, self.height, FONT))
        return "\n".join([head, "<rect width='100%%' height='100%%' fill='%s'/>" % PAPER, *self.parts, "</svg>", ""])


def roofline(runs):
    # Between the shallowest depth and the deepest, points would only lie over each other.
    depths = sorted({row["depth"] for run in runs for row in run["decode"]})
    ends = depths[:1] + depths[1:][-1:]
    series = [(run, depth, sorted((row for row in run["decode"] if row["depth"] == depth and row["gflop_s"] > 0),
                                  key=lambda row: row["batch"])) for run in runs for depth in ends]
    prefills = [(run, row) for run in runs for row in run["prefill"] if row["gflop_s"] > 0]
    points = [row for _, _, rows in series for row in rows] + [row for _, row in prefills]
    if not points:
        raise Refused("there is nothing to draw: no prefill and no decode in these runs")
    bandwidth = max(run["bandwidth"] for run in runs)
    peaks = {}
    for run in runs:
        peaks[run["unit"]] = max(peaks.get(run["unit"], 0.0), run["peak"])
    ridge = max(peaks.values()) / bandwidth
    low_x = min(p["flop_per_byte"] for p in points) / 2
    high_x = max(max(p["flop_per_byte"] for p in points), ridge) * 2
    low_y = min(min(p["gflop_s"] for p in points), bandwidth * low_x) / 2
    high_y = max(max(p["gflop_s"] for p in points), *peaks.values()) * 1.8
    legend = 20 * (len(runs) + 1)
    picture = Picture(860, 560 + legend, "Roofline",
                      "operations of the weight matrices; memory: what is read of weights and caches")
    x, y = Axis(low_x, high_x, 84, 836, True), Axis(low_y, high_y, 490, 76, True)
    picture.frame(x, y, "operations per byte of memory read", "GFLOP/s", x.ticks(), y.ticks())

    top = max(peaks.values())
    picture.roof(x.at(low_x), y.at(bandwidth * low_x), x.at(ridge), y.at(top))
    slope = math.degrees(math.atan2(y.at(top) - y.at(bandwidth * low_x), x.at(ridge) - x.at(low_x)))
    middle = low_x ** 0.35 * ridge ** 0.65
    mx, my = x.at(middle), y.at(bandwidth * middle)
    picture.text(mx - 6, my - 8, "reads %.1f GB/s" % bandwidth, anchor="middle", turn=slope)
    for i in range(-4, 5):  # what lies under the slanted text
        tx, ty = mx - 10 + 11 * i, my - 14 + 11 * i * math.tan(math.radians(slope))
        picture.boxes.append((tx - 7, ty - 7, tx + 7, ty + 7))
    for unit, peak in peaks.items():
        picture.roof(x.at(peak / bandwidth), y.at(peak), x.last, y.at(peak))
        picture.text(x.last - 4, y.at(peak) - 7, "%s: %s GFLOP/s" % (unit, plain(round(peak))), anchor="end")
        picture.boxes.append((x.last - 180, y.at(peak) - 20, x.last, y.at(peak) + 2))

    place = lambda row: (x.at(row["flop_per_byte"]), y.at(row["gflop_s"]))
    labels = []
    for run, depth, rows in series:
        for one, other in zip(rows, rows[1:]):
            picture.line(*place(one), *place(other), run["colour"], 1)
    for run, depth, rows in series:
        for row in rows:
            (picture.circle if depth == ends[0] else picture.ring)(*place(row), run["colour"])
            labels.append((row, "%d" % row["batch"], run["colour"]))
    for run, row in prefills:
        picture.diamond(*place(row), run["colour"])
        labels.append((row, "prefill " + short(row["tokens"]), run["colour"]))
    for row, what, colour in labels:
        picture.label(*place(row), what, colour, (86, 78, 836, 488))
    at = 558
    for run in runs:
        picture.circle(92, at - 4, run["colour"])
        picture.text(106, at, run["name"], size=13)
        at += 20
    key = ["decode behind %s tokens" % short(depth) for depth in ends]
    at_x = 84
    for i, what in enumerate(key):
        (picture.ring if i else picture.circle)(at_x + 8, at - 4, FAINT)
        picture.text(at_x + 22, at, what, colour=FAINT)
        at_x += 40 + 6.4 * len(what)
    if key:
        picture.text(at_x, at, "(number: sessions in the batch)", colour=FAINT)
        at_x += 30 + 6.4 * 30
    picture.diamond(at_x + 8, at - 4, FAINT)
    picture.text(at_x + 22, at, "prefill", colour=FAINT)
    return picture.svg()


def depth_curves(runs):
    batches = sorted({row["batch"] for run in runs for row in run["decode"]})
    lines = []
    for run in runs:
        for batch in batches:
            rows = sorted((row["depth"], row["tokens_per_s"]) for row in run["decode"] if row["batch"] == batch)
            rows = [row for row in rows if row[1] > 0]
            if rows:
                name = run["name"] + (", batch of %d" % batch if len(batches) > 1 else "")
                lines.append((name, run["colour"], DASHES[batches.index(batch) % len(DASHES)], rows))
    if not lines:
        return None
    speeds = [speed for line in lines for _, speed in line[3]]
    log = max(speeds) / min(speeds) > 12
    high_x = max(max(depth for line in lines for depth, _ in line[3]), 1.0)
    batch_text = "" if len(batches) > 1 else ", batch of %d" % batches[0]
    picture = Picture(1000, 560, "Decoding at depth", "tokens per second of all sessions together" + batch_text)
    x = Axis(0.0, high_x, 84, 700, False)
    y = Axis(min(speeds) / 1.5, max(speeds) * 1.3, 490, 76, True) if log else Axis(0.0, max(speeds) * 1.1, 490, 76, False)
    picture.frame(x, y, "tokens that each session holds", "tokens/s", depth_ticks(high_x), y.ticks(), x_text=short)
    ends = []
    for name, colour, dash, rows in lines:
        path = " ".join("%.1f,%.1f" % (x.at(depth), y.at(speed)) for depth, speed in rows)
        picture.add("<polyline points='%s' fill='none' stroke='%s' stroke-width='2'%s/>"
                    % (path, colour, " stroke-dasharray='%s'" % dash if dash else ""))
        for depth, speed in rows:
            picture.circle(x.at(depth), y.at(speed), colour)
        ends.append([y.at(rows[-1][1]), x.at(rows[-1][0]), name, colour, rows[-1][1]])
    # Names at the ends of their lines, moved apart where they would lie over each other.
    ends.sort()
    places = [end[0] for end in ends]
    for _ in range(200):
        for i in range(1, len(places)):
            push = 15 - (places[i] - places[i - 1])
            if push > 0:
                places[i - 1] -= push / 2
                places[i] += push / 2
    for place, (at_y, at_x, name, colour, speed) in zip(places, ends):
        picture.line(at_x + 6, at_y, 714, place, colour, 0.6)
        picture.text(718, place + 4, "%s: %s" % (name, "%.3g" % speed if speed < 1000 else plain(round(speed))), colour=colour)
    return picture.svg()


def main():
    parser = argparse.ArgumentParser(description="Draws the JSON of hymba bench as roofline.svg and depth.svg.")
    parser.add_argument("runs", nargs="+", metavar="RUN.json")
    parser.add_argument("--out", default=".", metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        runs = [read_run(path) for path in arguments.runs]
        name_runs(runs)
        for name, svg in (("roofline.svg", roofline(runs)), ("depth.svg", depth_curves(runs))):
            if svg is None:
                continue
            path = os.path.join(arguments.out, name)
            try:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(svg)
            except OSError as error:
                raise Refused("cannot write %s: %s" % (path, error.strerror)) from None
            print(path)
    except Refused as error:
        print("draw.py: %s" % error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
