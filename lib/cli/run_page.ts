// The page of a run folder: what every stage has done so far. It is written again while the run goes.
import type { StepMetrics } from '../train';
import { escape, htmlPage, trainingCharts } from './page';

/** A picture with what is to be said of it. */
export interface Picture {
  /** A `data:` URL. */
  readonly image: string;
  readonly title: string;
  readonly lines: readonly string[];
}

/** Pictures of one kind: captions with boxes, masked patches, features. */
export interface PictureRow {
  readonly title: string;
  readonly text: string;
  readonly pictures: readonly Picture[];
}

/** What the page tells of a stage. */
export interface StagePage {
  readonly name: string;
  /** What it trains, in words. */
  readonly about: string;
  /** Steps it has in all. */
  readonly steps: number;
  readonly metrics: readonly StepMetrics[];
  readonly pictures: readonly PictureRow[];
}

export interface RunPage {
  readonly title: string;
  readonly stages: readonly StagePage[];
  readonly settings: Readonly<Record<string, string>>;
  /** Seconds after which a browser loads the page again; none for a run that is over. */
  readonly refresh?: number;
}

/** The page as HTML. */
export function renderRunPage({ title, stages, settings, refresh }: RunPage): string {
  const body = [
    `<ul class="summary">${stages.map((stage) => `<li>${escape(summary(stage))}</li>`).join('')}</ul>`,
    ...stages.filter(({ metrics }) => metrics.length > 0).map(section),
    `<h2>Settings</h2><table>${Object.entries(settings)
      .map(([name, value]) => `<tr><th>${escape(name)}</th><td>${escape(value)}</td></tr>`)
      .join('')}</table>`,
  ].join('\n');
  return htmlPage(title, body, refresh);
}

function summary({ name, about, steps, metrics }: StagePage): string {
  const last = metrics.at(-1);
  const state =
    last === undefined
      ? 'not begun'
      : `${String(metrics.length)} of ${String(steps)} steps, loss ${last.loss.toFixed(3)}`;
  return `${name}: ${about}; ${state}`;
}

function section({ name, about, metrics, pictures }: StagePage): string {
  return [
    `<h2>Stage ${escape(name)}</h2><p>${escape(about)}</p>`,
    `<div class="charts">${trainingCharts(metrics)}</div>`,
    ...pictures.map(
      (row) =>
        `<h2>${escape(row.title)}</h2><p>${escape(row.text)}</p><div class="gallery">${row.pictures.map(card).join('')}</div>`,
    ),
  ].join('\n');
}

function card({ image, title, lines }: Picture): string {
  const items = lines.map((line) => `<li><bdi>${escape(line)}</bdi></li>`).join('');
  return `<div class="card"><img src="${image}" alt="${escape(title)}"><div><b>${escape(title)}</b><ul>${items}</ul></div></div>`;
}
