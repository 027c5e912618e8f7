// What a person sees of a run: a progress line of the stage that trains, and a page in the run folder that
// is written again now and then.
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Recipe, Selection, Stage, StepMetrics } from '../train';
import {
  trainsDecoder,
  hasEnded,
  trainsSelfDistillation,
  readMetrics,
  stageFolder,
  stageModel,
  stageUpdates,
} from '../train';
import { Progress } from './progress';
import type { PictureRow } from './run_page';
import { renderRunPage } from './run_page';
import { selectionPictures } from './selection_pictures';

/** Seconds between two writings of the page, and after which a browser loads it again. */
const REFRESH = 15;

/** Shows a run while it goes. */
export class RunWatcher {
  private progress: { readonly stage: string; readonly line: Progress } | undefined;
  private rate = 0;
  private loss: number | undefined;
  private written = -Infinity;
  private readonly pictures = new Map<string, readonly PictureRow[]>();
  /** Of curated stages: what one of their last steps chose. */
  private readonly selections = new Map<string, readonly PictureRow[]>();
  private selected = -Infinity;
  private drawing: Promise<void> = Promise.resolve();

  constructor(
    private readonly recipe: Recipe,
    private readonly folder: string,
    private readonly stages: readonly Stage[],
    /** Pictures of a stage that has ended. */
    private readonly picturesOf: (stage: Stage) => Promise<readonly PictureRow[]> = () =>
      Promise.resolve([]),
  ) {}

  /** Takes note of a step. */
  step(stage: Stage, metrics: StepMetrics): void {
    if (this.progress?.stage !== stage.name) this.begin(stage, metrics);
    const { pairsPerSecond, loss } = metrics;
    this.rate = this.rate === 0 ? pairsPerSecond : 0.95 * this.rate + 0.05 * pairsPerSecond;
    this.loss = this.loss === undefined ? loss : 0.95 * this.loss + 0.05 * loss;
    const named = this.stages.length > 1 ? `stage ${stage.name}  ` : '';
    this.progress?.line.update(
      this.done(stage, metrics),
      `${named}loss ${this.loss.toFixed(3)}  ${String(Math.round(this.rate))} pairs/s`,
    );
    if (performance.now() - this.written > 1000 * REFRESH) this.write(REFRESH);
  }

  /** Takes note of what a step chose to train on, as often as the page is written. */
  select(stage: Stage, selection: Selection): void {
    if (performance.now() - this.selected < 1000 * REFRESH) return;
    this.selected = performance.now();
    const drawn = selectionPictures(selection).then((rows) => {
      this.selections.set(stage.name, rows);
    });
    // Thrown at the end of the stage.
    drawn.catch(() => undefined);
    this.drawing = drawn;
  }

  /** Takes note of the end of a stage. */
  async end(stage: Stage): Promise<void> {
    await this.drawing;
    this.pictures.set(stage.name, await this.picturesOf(stage));
    const others = this.stages.filter(({ name }) => name !== stage.name);
    this.write(others.every((one) => hasEnded(this.folder, one)) ? undefined : REFRESH);
  }

  private begin(stage: Stage, metrics: StepMetrics): void {
    const total = stageUpdates(this.recipe, stage);
    const from = Math.max(0, this.done(stage, metrics) - 1);
    this.progress = { stage: stage.name, line: new Progress({ total, unit: 'steps', from }) };
    this.rate = 0;
    this.loss = undefined;
  }

  // Steps of full batches: a half batch is half a step.
  private done(stage: Stage, { pairsSeen }: StepMetrics): number {
    return Math.round((pairsSeen - this.pairsBefore(stage)) / (stage.batch ?? this.recipe.batch));
  }

  // A stage goes on counting where the one before it ended.
  private pairsBefore(stage: Stage): number {
    const before = this.recipe.stages.find(({ name }) => name === stage.after);
    if (before === undefined) return 0;
    const own = stageUpdates(this.recipe, before) * (before.batch ?? this.recipe.batch);
    return this.pairsBefore(before) + own;
  }

  private write(refresh: number | undefined): void {
    this.written = performance.now();
    const page = renderRunPage({
      title: this.recipe.name,
      stages: this.stages.map((stage) => ({
        name: stage.name,
        about: about(this.recipe, stage),
        steps: stageUpdates(this.recipe, stage),
        metrics: readMetrics(join(stageFolder(this.folder, stage), 'metrics.jsonl')),
        pictures: [
          ...(this.selections.get(stage.name) ?? []),
          ...(this.pictures.get(stage.name) ?? []),
        ],
      })),
      settings: { recipe: JSON.stringify(this.recipe) },
      ...(refresh === undefined ? {} : { refresh }),
    });
    mkdirSync(this.folder, { recursive: true });
    const path = join(this.folder, 'run.html');
    writeFileSync(`${path}.tmp`, page, { flush: true });
    renameSync(`${path}.tmp`, path);
  }
}

/** What a stage trains, in words. */
export function about(recipe: Recipe, stage: Stage): string {
  const { vision } = stageModel(recipe, stage);
  const images =
    vision.layout === 'fixed'
      ? `${String(vision.imageSize)} pixels, patch ${String(vision.patch)}`
      : `NaFlex of ${(stage.lengths ?? []).join(', ')} patches`;
  const losses = [
    'sigmoid loss',
    ...(trainsDecoder(stage) ? ['decoder'] : []),
    ...(trainsSelfDistillation(stage) ? ['self-distillation and masked prediction'] : []),
    ...(stage.curation === undefined ? [] : ['on curated batches']),
  ];
  return `${losses.join(', ')}; ${images}`;
}
