// bv_train_20: twenty updates of the original trainer. What it was given, and the comparison of what
// it recorded; shared by the reference's trainer and the product's.
import type { NdArray } from '../reference/nd_array';
import { map, ndArray } from '../reference/nd_array';
import type { Recipe } from '../reference/train';
import { leaves } from '../reference/tree';
import { expectClose, within } from './close';
import type { GoldenCase } from './golden';
import { channelsFirst } from './inputs';
import type { Numbers, TwoTowersCase } from './subject';
import { bigVisionCase, bigVisionTowers } from './subject';

/** The run's towers and hyper-parameters; `images` and `ids` are the batch of step 0. */
export interface TrainingCase extends TwoTowersCase {
  readonly recipe: Recipe;
  readonly steps: number;
  /** The batch of a step: bytes (B, height, width, 3), and as images (B, 3, height, width); ids (B, T). */
  readonly batch: (step: number) => { bytes: NdArray; images: NdArray; ids: NdArray };
}

/** What a trainer tells about one step. */
export interface StepNumbers {
  readonly loss: number;
  readonly multiplier: number;
  readonly gradientNorm: number;
  readonly updateNorm: number;
  readonly parameterNorm: number;
  /** After the step. */
  readonly logitScale: number;
  readonly logitBias: number;
  /** Norm of the raw gradient by parameter path, where the trainer gives it. */
  readonly gradientNorms?: ReadonlyMap<string, number>;
}

interface OptimizerDescription {
  readonly grad_clip_norm: number;
  readonly b1: number;
  readonly b2: number;
  readonly eps: number;
  readonly lr: number;
  readonly wd: number;
  readonly schedule: { readonly total_steps: number; readonly warmup_steps: number };
}

function slice(x: NdArray, i: number): NdArray {
  const size = x.data.length / x.shape[0];
  return ndArray(x.shape.slice(1), x.data.subarray(i * size, (i + 1) * size));
}

/** The value of a byte, as the original computes it in float32: −1 + (x / 255) · 2. */
export function normalized(byte: number): number {
  return Math.fround(-1 + Math.fround(Math.fround(byte / 255) * 2));
}

/** Reads the run's description, initial parameters and batches. */
export function trainingCase(golden: GoldenCase): TrainingCase {
  const optimizer = golden.json.optimizer as OptimizerDescription;
  const { names } = bigVisionTowers(golden, 'param');
  const images = golden.tensor('in/images_u8');
  const texts = golden.tensor('in/texts');
  const batch = (step: number): { bytes: NdArray; images: NdArray; ids: NdArray } => {
    const bytes = slice(images, step);
    return { bytes, images: map(channelsFirst(bytes), normalized), ids: slice(texts, step) };
  };
  const first = batch(0);
  return {
    ...bigVisionCase(golden, first.images, first.ids),
    recipe: {
      learningRate: optimizer.lr,
      beta1: optimizer.b1,
      beta2: optimizer.b2,
      eps: optimizer.eps,
      weightDecay: optimizer.wd,
      clipNorm: optimizer.grad_clip_norm,
      totalSteps: optimizer.schedule.total_steps,
      warmupSteps: optimizer.schedule.warmup_steps,
      decays: (path) => names.get(path)?.endsWith('/kernel') ?? false,
    },
    steps: texts.shape[0],
    batch,
  };
}

/** Compares one step with the float64 record, every number within the bar suggested for it. */
export function expectStep(golden: GoldenCase, step: number, actual: StepNumbers): void {
  const check = (what: string, value: number, column = 0): void => {
    const record = golden.tensor(`out_f64_run/${what}`);
    const columns = record.data.length / record.shape[0];
    const expected = ndArray([1], [record.data[step * columns + column]]);
    expectClose(`${what}[${String(step)}]`, [value], expected, within(golden.atol(`out/${what}`)));
  };
  check('lr_multiplier', actual.multiplier);
  check('training_loss', actual.loss);
  check('l2_grads', actual.gradientNorm);
  check('l2_updates', actual.updateNorm);
  check('l2_params', actual.parameterNorm);
  check('t_b', actual.logitScale, 0);
  check('t_b', actual.logitBias, 1);
  if (actual.gradientNorms === undefined) return;
  const order = golden.json.parameter_order as readonly string[];
  const norms = golden.tensor('out/grad_l2_per_param');
  for (const [path, name] of bigVisionTowers(golden, 'param').names) {
    const column = order.indexOf(name);
    const expected = ndArray([1], [norms.data[step * order.length + column]]);
    expectClose(
      `gradient norm of ${path}[${String(step)}]`,
      [actual.gradientNorms.get(path) ?? NaN],
      expected,
      within(golden.atol('out/grad_l2_per_param')),
    );
  }
}

/** Compares the parameters after the last step; key biases follow rounding noise and are left out. */
export function expectFinalParameters(golden: GoldenCase, actual: Numbers, atol: number): void {
  for (const [path, expected] of leaves(bigVisionTowers(golden, 'out/param_final').tree)) {
    if (path.endsWith('.key.bias')) continue;
    expectClose(path, actual.get(path) ?? [], expected, within(atol));
  }
}
