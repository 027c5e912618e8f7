// One self-contained HTML page about a demo run: no scripts, no outside resources, drawings inline.
import type { StepMetrics } from '../train';
import type { Share } from './page';
import { escape, htmlPage, percent, trainingCharts } from './page';

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

/** The page as HTML. */
export function renderReport(report: Report): string {
  const body = `<ul class="summary">${report.summary.map((line) => `<li>${escape(line)}</li>`).join('')}</ul>
<h2>What it says of drawings it has never seen</h2>
<p>Each drawing is of the style that was not used in training; for every language the best of all
names, with its probability. Green: the right name.</p>
<div class="gallery">${report.gallery.map(card).join('')}</div>
<h2>Training</h2>
<div class="charts">${trainingCharts(report.metrics)}</div>
${report.tables.map(table).join('\n')}
<h2>What it takes for what</h2>
<p>Rows are the drawings shown, columns the names chosen among these, summed over languages.</p>
${matrix(report.confusion)}
<h2>Settings</h2>
<table>${Object.entries(report.settings)
    .map(([name, value]) => `<tr><th>${escape(name)}</th><td>${escape(value)}</td></tr>`)
    .join('')}</table>
<footer>${report.attribution.map((line) => `<div>${escape(line)}</div>`).join('')}</footer>`;
  return htmlPage(report.title, body);
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
