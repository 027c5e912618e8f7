// The page about a selection: what it takes and what it leaves, in numbers and by examples.
import sharp from 'sharp';
import type { CurationGroup, CurationSummary, KeptRow } from '../bulk';
import { rowsAgain } from '../bulk';
import type { ImageReference, Source } from '../corpus';
import { lineChart } from './line_chart';
import { escape, htmlPage, percent } from './page';

/** What the page is made of. */
export interface CurationReport {
  readonly summary: CurationSummary;
  /** The corpus, to show its images and texts; where there are embeddings alone, none. */
  readonly sources: readonly Source[];
  readonly settings: Readonly<Record<string, string>>;
}

/** Pixels a side of a picture on the page. */
const SIDE = 96;
const BINS = 60;

/** The page as HTML. */
export async function renderCurationReport({
  summary,
  sources,
  settings,
}: CurationReport): Promise<string> {
  const { selected, dropped, failures, superBatches } = summary;
  const groups = [
    ['Selected, of the highest score', selected.highest],
    ['Selected all the same, of the lowest score', selected.lowest],
    ['Dropped, of the lowest score', dropped.lowest],
    ['Dropped all the same, of the highest score', dropped.highest],
  ] as const;
  const shown = await picturesOf(
    groups.flatMap(([, rows]) => rows),
    sources,
  );
  const total = selected.count + dropped.count;
  const lines = [
    `${String(selected.count)} of ${String(total)} rows selected (${percent(selected.count / Math.max(total, 1))}), in ${String(superBatches)} super-batches`,
    ...(failures === 0 ? [] : [`${String(failures)} rows that could not be read were passed over`]),
  ];
  const body = [
    `<ul class="summary">${lines.map((line) => `<li>${escape(line)}</li>`).join('')}</ul>`,
    means(selected, dropped),
    `<div class="charts">${histogram(selected, dropped)}${overTime(summary)}</div>`,
    ...groups.map(([title, rows]) => gallery(title, rows, shown)),
    '<h2>Settings</h2>',
    `<table>${Object.entries(settings)
      .map(([name, value]) => `<tr><th>${escape(name)}</th><td>${escape(value)}</td></tr>`)
      .join('')}</table>`,
  ];
  return htmlPage('What curation selects', body.join('\n'));
}

function means(selected: CurationGroup, dropped: CurationGroup): string {
  const columns = [
    ['score', 'score'],
    ['learner’s loss', 'learnerLoss'],
    ['reference’s loss', 'referenceLoss'],
  ] as const;
  const row = (name: string, { count, sums }: CurationGroup): string => {
    const cells = columns.map(([, key]) => number(sums[key] / count));
    return `<tr><td>${name}</td>${[String(count), ...cells]
      .map((cell) => `<td class="number">${cell}</td>`)
      .join('')}</tr>`;
  };
  const head = ['rows', ...columns.map(([name]) => `mean ${name}`)];
  return `<table><tr><th></th>${head.map((name) => `<th class="number">${name}</th>`).join('')}</tr>${row('selected', selected)}${row('dropped', dropped)}</table>`;
}

function histogram(selected: CurationGroup, dropped: CurationGroup): string {
  let [low, high] = [Infinity, -Infinity];
  for (const { ranked } of [selected, dropped]) {
    for (const score of ranked) [low, high] = [Math.min(low, score), Math.max(high, score)];
  }
  if (!(low < high)) return '';
  const width = (high - low) / BINS;
  const series = [
    { name: 'selected', ...selected },
    { name: 'dropped', ...dropped },
  ].map(({ name, ranked, count }) => {
    const bins = new Float64Array(BINS);
    for (const score of ranked) {
      bins[Math.min(BINS - 1, Math.floor((score - low) / width))] += count / ranked.length;
    }
    const points = Array.from(bins, (rows, i) => [low + (i + 0.5) * width, rows] as const);
    return { name, points };
  });
  return `<figure><figcaption>Rows by score</figcaption>${lineChart(series)}</figure>`;
}

function overTime({ scores }: CurationSummary): string {
  if (scores.length < 2) return '';
  const series = [
    { name: 'super-batch', points: scores.map(({ score }, i) => [i, score] as const) },
    { name: 'selected', points: scores.map(({ selectedScore }, i) => [i, selectedScore] as const) },
  ];
  return `<figure><figcaption>Mean score by super-batch</figcaption>${lineChart(series)}</figure>`;
}

interface Shown {
  /** A `data:` URL. */
  readonly image: string | undefined;
  readonly text: string | undefined;
}

function gallery(
  title: string,
  rows: readonly KeptRow[],
  shown: ReadonlyMap<string, Shown>,
): string {
  if (rows.length === 0) return '';
  return `<h2>${title}</h2><div class="gallery">${rows.map((row) => card(row, shown.get(keyOf(row)))).join('')}</div>`;
}

function card(row: KeptRow, shown: Shown | undefined): string {
  const { id = `row ${String(row.row)}`, score, learnerLoss, referenceLoss } = row;
  const image = shown?.image === undefined ? '' : `<img src="${shown.image}" alt="">`;
  const title = shown?.text ?? id;
  return `<div class="card">${image}<div><b><bdi>${escape(title)}</bdi></b><ul><li>score ${number(score)}</li><li>learner ${number(learnerLoss)}, reference ${number(referenceLoss)}</li><li><small>${escape(id)}</small></li></ul></div></div>`;
}

async function picturesOf(
  rows: readonly KeptRow[],
  sources: readonly Source[],
): Promise<ReadonlyMap<string, Shown>> {
  const shown = new Map<string, Shown>();
  if (sources.length === 0) return shown;
  for await (const { source, row } of rowsAgain(sources, rows)) {
    const image = row.image === undefined ? undefined : await thumbnail(row.image);
    shown.set(keyOf({ source, row: row.index }), { image, text: row.text });
  }
  return shown;
}

async function thumbnail(image: ImageReference): Promise<string> {
  const png = await sharp('path' in image ? image.path : image.bytes)
    .resize(SIDE, SIDE, { fit: 'contain', background: '#fff' })
    .flatten({ background: '#fff' })
    .png()
    .toBuffer();
  return `data:image/png;base64,${png.toString('base64')}`;
}

function keyOf({ source, row }: Pick<KeptRow, 'source' | 'row'>): string {
  return `${String(source)} ${String(row)}`;
}

function number(value: number): string {
  return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : '–';
}
