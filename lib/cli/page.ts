// What all pages of results share: one self-contained HTML file, no scripts, no outside resources,
// pictures inline, readable in light and dark.
import type { StepMetrics } from '../train';
import type { Series } from './line_chart';
import { lineChart } from './line_chart';

/** A share with its 95 % interval, all in [0, 1]. */
export interface Share {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

const style = `
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #fff; --panel: #f6f7f9; --accent: #2563c9; --good: #1c7c4a; --bad: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9ef; --soft: #9aa5b4; --line: #333c48; --paper: #14181d; --panel: #1c222a; --accent: #7aa7f0; --good: #62c68f; --bad: #ef8c84; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .4rem; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .3rem; }
p { margin: .3rem 0 .8rem; color: var(--soft); } .summary li { margin: .25rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; } td.number, th.number { text-align: right; padding-right: 0; padding-left: .8rem; white-space: nowrap; }
small { color: var(--soft); } .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--panel); border-radius: .5rem; padding: .8rem; } figcaption { font-size: .85rem; color: var(--soft); margin-bottom: .3rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14.5rem, 100%), 1fr)); gap: .8rem; }
.card { background: var(--panel); border-radius: .5rem; padding: .7rem; display: flex; gap: .7rem; } .card img { width: 64px; height: 64px; image-rendering: auto; background: #fff; border-radius: .3rem; }
.card ul { list-style: none; margin: 0; padding: 0; font-size: .85rem; } .card b { font-size: .9rem; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.matrix td, .matrix th { text-align: center; padding: .15rem; border: 0; font-size: .8rem; } .matrix img { width: 28px; height: 28px; background: #fff; border-radius: .2rem; } .matrix td.cell { min-width: 2.2rem; border-radius: .2rem; }
body, .card div { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
footer { margin-top: 3rem; font-size: .8rem; color: var(--soft); }
`;

/** A page as HTML; the browser loads it again every `refresh` seconds where that is given. */
export function htmlPage(title: string, body: string, refresh?: number): string {
  const again =
    refresh === undefined ? '' : `<meta http-equiv="refresh" content="${String(refresh)}">`;
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">${again}
<title>${escape(title)}</title><style>${style}</style></head>
<body>
<h1>${escape(title)}</h1>
${body}
</body>
</html>
`;
}

/** `23.6 %`. */
export function percent(value: number): string {
  return `${(100 * value).toFixed(1)} %`;
}

/** `23.6 % (20.1–27.4)`. */
export function shareText({ value, low, high }: Share): string {
  return `${percent(value)} (${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)})`;
}

/** A caption over a chart of some numbers of every step. */
export function metricsChart(
  title: string,
  metrics: readonly StepMetrics[],
  series: Readonly<Record<string, (m: StepMetrics) => number>>,
  log = false,
): string {
  const lines: Series[] = Object.entries(series).map(([name, value]) => ({
    name,
    points: metrics.map((m) => [m.step, value(m)] as const),
  }));
  return `<figure><figcaption>${escape(title)}</figcaption>${lineChart(lines, { log })}</figure>`;
}

/** The charts of a training log: loss and its terms, norms, learning rate, logits, speed. */
export function trainingCharts(metrics: readonly StepMetrics[]): string {
  const chart = (
    title: string,
    series: Readonly<Record<string, (m: StepMetrics) => number>>,
    log = false,
  ): string => metricsChart(title, metrics, series, log);
  const terms = [...new Set(metrics.flatMap((m) => Object.keys(m.terms ?? {})))];
  return [
    chart('Loss', { loss: (m) => m.loss }),
    ...terms.map((term) =>
      chart(`Term of the loss: ${term}`, { [term]: (m) => m.terms?.[term] ?? NaN }),
    ),
    chart(
      'Global norms (logarithmic)',
      {
        gradient: (m) => m.gradientNorm,
        update: (m) => m.updateNorm,
        parameters: (m) => m.parameterNorm,
      },
      true,
    ),
    chart('Learning rate', { rate: (m) => m.learningRate }),
    chart('Logit scale and bias', {
      'scale exp(t)': (m) => m.logitScale,
      'bias b': (m) => m.logitBias,
    }),
    chart('Pairs per second', { 'pairs/s': (m) => m.pairsPerSecond }),
    chart('Share of a step spent waiting for data', { share: (m) => m.dataShare }),
  ].join('');
}

/** Text as it may stand in HTML. */
export function escape(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
