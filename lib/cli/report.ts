// One self-contained HTML page about a demo run: no scripts, no outside resources, drawings inline.
import type { StepMetrics } from '../train';
import type { Series } from './line_chart';
import { lineChart } from './line_chart';

/** A share with its 95 % interval, all in [0, 1]. */
export interface Share {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

/** One line of a table of results. */
export interface ResultRow {
  readonly name: string;
  /** What was counted: `259 drawings × 4 languages`. */
  readonly note: string;
  readonly shares: Readonly<Record<string, Share>>;
  readonly chance: number;
  /** Nearest neighbour on pixels, where it is defined. */
  readonly baseline?: number;
}

export interface ResultTable {
  readonly title: string;
  readonly text: string;
  readonly rows: readonly ResultRow[];
}

export interface GalleryItem {
  /** A `data:` URL. */
  readonly image: string;
  readonly name: string;
  readonly captions: readonly {
    readonly language: string;
    readonly text: string;
    readonly probability: number;
    readonly right: boolean;
  }[];
}

export interface Confusion {
  readonly labels: readonly string[];
  /** `data:` URLs, one per label. */
  readonly images: readonly string[];
  /** counts[true][predicted]. */
  readonly counts: readonly (readonly number[])[];
}

export interface Report {
  readonly title: string;
  readonly summary: readonly string[];
  readonly settings: Readonly<Record<string, string>>;
  readonly metrics: readonly StepMetrics[];
  readonly tables: readonly ResultTable[];
  readonly gallery: readonly GalleryItem[];
  readonly confusion: Confusion;
  readonly attribution: readonly string[];
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

/** The page as HTML. */
export function renderReport(report: Report): string {
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(report.title)}</title><style>${style}</style></head>
<body>
<h1>${escape(report.title)}</h1>
<ul class="summary">${report.summary.map((line) => `<li>${escape(line)}</li>`).join('')}</ul>
<h2>What it says of drawings it has never seen</h2>
<p>Each drawing is of the style that was not used in training; for every language the best of all
names, with its probability. Green: the right name.</p>
<div class="gallery">${report.gallery.map(card).join('')}</div>
<h2>Training</h2>
<div class="charts">${charts(report.metrics)}</div>
${report.tables.map(table).join('\n')}
<h2>What it takes for what</h2>
<p>Rows are the drawings shown, columns the names chosen among these, summed over languages.</p>
${matrix(report.confusion)}
<h2>Settings</h2>
<table>${Object.entries(report.settings)
    .map(([name, value]) => `<tr><th>${escape(name)}</th><td>${escape(value)}</td></tr>`)
    .join('')}</table>
<footer>${report.attribution.map((line) => `<div>${escape(line)}</div>`).join('')}</footer>
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

function table({ title, text, rows }: ResultTable): string {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row.shares)))];
  const withBaseline = rows.some((row) => row.baseline !== undefined);
  const head = [...columns, 'chance', ...(withBaseline ? ['pixel baseline'] : [])];
  return `<h2>${escape(title)}</h2><p>${escape(text)}</p>
<table><tr><th></th>${head.map((name) => `<th class="number">${escape(name)}</th>`).join('')}</tr>
${rows
  .map((row) => {
    const cells = [
      ...columns.map((name) => {
        const share = row.shares[name] as Share | undefined;
        return share === undefined
          ? ''
          : `${percent(share.value)}<br><small>${(100 * share.low).toFixed(1)}–${(100 * share.high).toFixed(1)}</small>`;
      }),
      percent(row.chance),
      ...(withBaseline ? [row.baseline === undefined ? '' : percent(row.baseline)] : []),
    ];
    return `<tr><td>${escape(row.name)}<br><small>${escape(row.note)}</small></td>${cells
      .map((cell) => `<td class="number">${cell}</td>`)
      .join('')}</tr>`;
  })
  .join('\n')}</table>`;
}

function charts(metrics: readonly StepMetrics[]): string {
  const chart = (
    title: string,
    series: Readonly<Record<string, (m: StepMetrics) => number>>,
    log = false,
  ): string => {
    const lines: Series[] = Object.entries(series).map(([name, value]) => ({
      name,
      points: metrics.map((m) => [m.step, value(m)] as const),
    }));
    return `<figure><figcaption>${escape(title)}</figcaption>${lineChart(lines, { log })}</figure>`;
  };
  return [
    chart('Loss', { loss: (m) => m.loss }),
    chart(
      'Global norms (logarithmic)',
      {
        gradient: (m) => m.gradientNorm,
        update: (m) => m.updateNorm,
        parameters: (m) => m.parameterNorm,
      },
      true,
    ),
    chart('Logit scale and bias', {
      'scale exp(t)': (m) => m.logitScale,
      'bias b': (m) => m.logitBias,
    }),
    chart('Pairs per second', { 'pairs/s': (m) => m.pairsPerSecond }),
  ].join('');
}

function card({ image, name, captions }: GalleryItem): string {
  const lines = captions
    .map(
      ({ language, text, probability, right }) =>
        `<li><small>${escape(language)}</small> <span class="${right ? 'right' : 'wrong'}" lang="${escape(language)}"><bdi>${escape(text)}</bdi></span> <small>${percent(probability)}</small></li>`,
    )
    .join('');
  return `<div class="card"><img src="${image}" alt="${escape(name)}"><div><b>${escape(name)}</b><ul>${lines}</ul></div></div>`;
}

function matrix({ labels, images, counts }: Confusion): string {
  const head = images
    .map(
      (image, i) =>
        `<th><img src="${image}" alt="${escape(labels[i])}" title="${escape(labels[i])}"></th>`,
    )
    .join('');
  const rows = counts.map((row, i) => {
    const total = row.reduce((sum, n) => sum + n, 0);
    const cells = row
      .map(
        (n) =>
          `<td class="cell" style="background: color-mix(in srgb, var(--accent) ${String(Math.round((70 * n) / Math.max(total, 1)))}%, transparent)">${n === 0 ? '' : String(n)}</td>`,
      )
      .join('');
    return `<tr><th style="text-align: right">${escape(labels[i])} <img src="${images[i]}" alt=""></th>${cells}</tr>`;
  });
  return `<div class="wide"><table class="matrix" style="width: auto"><tr><th></th>${head}</tr>${rows.join('')}</table></div>`;
}

function escape(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
