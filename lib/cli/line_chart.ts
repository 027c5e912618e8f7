// A line chart as SVG text: thinned to what the eye can see, axes with round numbers.

export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [number, number])[];
}

const size = { width: 460, height: 230, left: 48, right: 10, top: 12, bottom: 24 };
const colours = ['var(--accent)', '#d97a1f', '#2f9e6b', '#b04fc4'];
const mostPoints = 400;

/** @param options - `log`: a logarithmic vertical axis; values that are not positive are left out. */
export function lineChart(
  series: readonly Series[],
  options: { readonly log?: boolean } = {},
): string {
  const log = options.log === true;
  const lines = series.map(({ name, points }) => ({
    name,
    points: thin(points.filter(([, y]) => Number.isFinite(y) && (!log || y > 0))),
  }));
  const all = lines.flatMap(({ points }) => points);
  if (all.length === 0) return '<svg viewBox="0 0 460 230"></svg>';
  const project = log ? Math.log10 : (y: number): number => y;
  const [x0, x1] = span(all.map(([x]) => x));
  const [y0, y1] = span(all.map(([, y]) => project(y)));
  const px = (x: number): number =>
    size.left + ((x - x0) / (x1 - x0)) * (size.width - size.left - size.right);
  const py = (y: number): number =>
    size.height -
    size.bottom -
    ((project(y) - y0) / (y1 - y0)) * (size.height - size.top - size.bottom);
  const yTicks = log ? decades(y0, y1) : roundTicks(y0, y1);
  const grid = yTicks
    .map((tick) => {
      const y = py(tick).toFixed(1);
      return `<line x1="${String(size.left)}" x2="${String(size.width - size.right)}" y1="${y}" y2="${y}" stroke="var(--line)"/><text x="${String(size.left - 6)}" y="${y}" dy="3.5" text-anchor="end">${label(tick)}</text>`;
    })
    .join('');
  const xAxis = roundTicks(x0, x1)
    .map(
      (tick) =>
        `<text x="${px(tick).toFixed(1)}" y="${String(size.height - 8)}" text-anchor="middle">${label(tick)}</text>`,
    )
    .join('');
  const paths = lines
    .map(({ points }, i) => {
      const path = points
        .map(([x, y], k) => `${k === 0 ? 'M' : 'L'}${px(x).toFixed(1)} ${py(y).toFixed(1)}`)
        .join('');
      return `<path d="${path}" fill="none" stroke="${colours[i % colours.length]}" stroke-width="1.5"/>`;
    })
    .join('');
  const legend =
    lines.length < 2
      ? ''
      : lines
          .map(
            ({ name }, i) =>
              `<text x="${String(size.width - size.right)}" y="${String(size.top + 10 + 14 * i)}" text-anchor="end" style="fill: ${colours[i % colours.length]}">${name}</text>`,
          )
          .join('');
  return `<svg viewBox="0 0 ${String(size.width)} ${String(size.height)}" role="img">${grid}${xAxis}${paths}${legend}</svg>`;
}

// The mean of each of a few hundred stretches.
function thin(points: Series['points']): Series['points'] {
  const stretch = Math.ceil(points.length / mostPoints);
  if (stretch <= 1) return points;
  const result: (readonly [number, number])[] = [];
  for (let first = 0; first < points.length; first += stretch) {
    const part = points.slice(first, first + stretch);
    const mean = (axis: 0 | 1): number => part.reduce((sum, p) => sum + p[axis], 0) / part.length;
    result.push([mean(0), mean(1)]);
  }
  return result;
}

function span(values: readonly number[]): [number, number] {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function roundTicks(low: number, high: number): number[] {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const ticks: number[] = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
  return ticks;
}

function decades(low: number, high: number): number[] {
  const ticks: number[] = [];
  for (let e = Math.ceil(low); e <= high; e++) ticks.push(10 ** e);
  return ticks.length > 1 ? ticks : [10 ** low, 10 ** high];
}

function label(value: number): string {
  return String(Number(value.toPrecision(3)));
}
