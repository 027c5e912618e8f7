// What is held to the golden numbers: the float64 reference in one test, the product in the others.
// Both give their numbers by the same names, and one function per case compares them, stage by stage
// in the order of computation, so that the first stage that differs is the message.
import { addRow } from '../reference/elementwise';
import { ndArray } from '../reference/nd_array';
import type { NdArray } from '../reference/nd_array';
import { leaves } from '../reference/tree';
import type { Bars } from './close';
import { expectClose } from './close';
import type { GoldenCase } from './golden';
import { channelsFirst, gridsOf, validRows } from './inputs';
import type { Named } from './parameters';
import { fromBigVision, fromHuggingFace, naflexFromBigVision } from './parameters';
import type { NaflexInput, TwoTowers, VisionTower } from '../reference/model';

/** Numbers by name. */
export type Numbers = ReadonlyMap<string, ArrayLike<number>>;

/** What one forward and backward pass gives. */
export interface Run {
  /** Intermediates under the names of the towers' taps. */
  readonly taps: Numbers;
  readonly loss: ArrayLike<number>;
  /** By parameter path. */
  readonly gradients: Numbers;
  /** With respect to `vision.embedding`, `text.embedding` and `input` (images or patches). */
  readonly gradientsWrt: Numbers;
}

/** A pair of towers, a batch for it, and what the parameters do not tell. */
export interface TwoTowersCase {
  readonly parameters: TwoTowers;
  readonly images: NdArray | NaflexInput;
  readonly ids: NdArray;
  readonly visionHeads: number;
  readonly textHeads: number;
  readonly patch: number;
}

function find(numbers: Numbers, name: string): ArrayLike<number> {
  const found = numbers.get(name);
  if (found === undefined) throw new Error(`${name}: must be among the results, got none`);
  return found;
}

/** Compares two trees of gradients by path. The exact gradient of a key's bias is zero. */
function expectGradients(
  actual: Numbers,
  expected: object,
  check: (path: string, gradient: NdArray) => void,
): void {
  const all = leaves(expected);
  for (const [path, gradient] of all) {
    find(actual, path);
    check(path, gradient);
  }
  const unknown = [...actual.keys()].filter((path) => !all.some(([known]) => known === path));
  if (unknown.length > 0)
    throw new Error(`gradients: must be known to the case, got ${unknown.join(', ')}`);
}

// ---- Hugging Face ----

interface HuggingFaceConfig {
  readonly vision_config: { readonly num_attention_heads: number; readonly patch_size: number };
  readonly text_config: { readonly num_attention_heads: number };
}

const OUTPUTS = 'golden.safetensors';
const WEIGHTS = 'model.safetensors';

/** The towers and the batch of a Hugging Face case. */
export function huggingFaceCase(golden: GoldenCase): TwoTowersCase {
  const config = golden.readJson('config.json') as HuggingFaceConfig;
  const names = new Set(golden.file(WEIGHTS).keys());
  const pixels = golden.tensor('input.pixel_values', OUTPUTS);
  const naflex = golden.file(OUTPUTS).has('input.spatial_shapes');
  return {
    parameters: fromHuggingFace((name) => golden.tensor(name, WEIGHTS), names),
    images: naflex
      ? {
          patches: pixels,
          mask: golden.tensor('input.pixel_attention_mask', OUTPUTS),
          shapes: golden.tensor('input.spatial_shapes', OUTPUTS),
        }
      : pixels,
    ids: golden.tensor('input.input_ids', OUTPUTS),
    visionHeads: config.vision_config.num_attention_heads,
    textHeads: config.text_config.num_attention_heads,
    patch: config.vision_config.patch_size,
  };
}

/** Logits (texts, images) of normalised embeddings. */
function logitsPerText(run: Run, parameters: TwoTowers, texts: number): Float64Array {
  const images = find(run.taps, 'vision.embedding');
  const embedded = find(run.taps, 'text.embedding');
  const E = embedded.length / texts;
  const tau = Math.exp(parameters.logitScale.data[0]);
  const result = new Float64Array((texts * images.length) / E);
  for (let i = 0; i < result.length; i++) {
    const text = Math.floor(i / (images.length / E));
    const image = i % (images.length / E);
    let sum = 0;
    for (let e = 0; e < E; e++) sum += embedded[text * E + e] * images[image * E + e];
    result[i] = tau * sum + parameters.logitBias.data[0];
  }
  return result;
}

/** Compares every hidden state, embedding, the logits, the loss and every gradient. */
export function expectHuggingFace(golden: GoldenCase, run: Run, bars: Bars): void {
  const { parameters, images, ids } = huggingFaceCase(golden);
  const expected = (name: string): NdArray => golden.tensor(name, OUTPUTS);
  const state = (tap: string, name: string, mask?: NdArray): void => {
    const values = find(run.taps, tap);
    if (mask === undefined) {
      expectClose(tap, values, expected(name), bars.state);
    } else {
      const kept = validRows(expected(name), mask);
      expectClose(tap, validRows({ data: values }, mask), ndArray([kept.length], kept), bars.state);
    }
  };
  for (const tower of ['vision', 'text'] as const) {
    const mask = tower === 'vision' && 'mask' in images ? images.mask : undefined;
    state(`${tower}.embedded`, `output.${tower}.hidden_state.0`, mask);
    parameters[tower].blocks.forEach((_, i) => {
      state(
        `${tower}.blocks.${String(i)}.output`,
        `output.${tower}.hidden_state.${String(i + 1)}`,
        mask,
      );
    });
    state(`${tower}.tokens`, `output.${tower}.last_hidden_state`, mask);
  }
  state('vision.pooled', 'output.image_embedding');
  state('text.projected', 'output.text_embedding');
  state('vision.embedding', 'output.image_embedding_normalized');
  state('text.embedding', 'output.text_embedding_normalized');
  expectClose(
    'logits',
    logitsPerText(run, parameters, ids.shape[0]),
    expected('output.logits_per_text'),
    bars.state,
  );
  expectClose('loss', run.loss, expected('output.loss'), bars.state);
  const names = new Set(golden.file(WEIGHTS).keys());
  const gradients = fromHuggingFace((name) => expected(`grad.${name}`), names);
  expectGradients(run.gradients, gradients, (path, gradient) => {
    expectClose(path, find(run.gradients, path), gradient, bars.gradient);
  });
}

// ---- big_vision ----

interface BigVisionTower {
  readonly depth: number;
  readonly num_heads: number;
}

interface BigVisionConfig {
  readonly patch: number;
  readonly image: BigVisionTower;
  readonly text: BigVisionTower;
}

function has(golden: GoldenCase, group: string): (name: string) => boolean {
  return (name) => golden.file('tensors.safetensors').has(`${group}/${name}`);
}

/** The two towers of a case, read from a group of its tensors: param, grad or out/param_final. */
export function bigVisionTowers(golden: GoldenCase, group: string): Named<TwoTowers> {
  return fromBigVision((name) => golden.tensor(`${group}/${name}`), has(golden, group));
}

/** The towers of a big_vision case; its batch is told by the case. */
export function bigVisionCase(golden: GoldenCase, images: NdArray, ids: NdArray): TwoTowersCase {
  const config = golden.json.config as BigVisionConfig;
  return {
    parameters: bigVisionTowers(golden, 'param').tree,
    images,
    ids,
    visionHeads: config.image.num_heads,
    textHeads: config.text.num_heads,
    patch: config.patch,
  };
}

/** The batch of bv_two_towers_fixed. */
export function twoTowersFixedCase(golden: GoldenCase): TwoTowersCase {
  return bigVisionCase(golden, channelsFirst(golden.tensor('in/image')), golden.tensor('in/text'));
}

/** Our tap -> big_vision's name, for the blocks of a tower. */
function blockStages(ours: string, theirs: string, depth: number): [string, string][] {
  return Array.from({ length: depth }, (_, i): [string, string][] => {
    const block = `${theirs}block${String(i).padStart(2, '0')}`;
    const tap = `${ours}.blocks.${String(i)}`;
    return [
      [`${tap}.attention`, `${block}/sa`],
      [`${tap}.attentionResidual`, `${block}/+sa`],
      [`${tap}.mlp`, `${block}/mlp`],
      [`${tap}.output`, `${block}/+mlp`],
    ];
  }).flat();
}

/** Compares every intermediate, the loss and every gradient of bv_two_towers_fixed. */
export function expectTwoTowersFixed(golden: GoldenCase, run: Run, bars: Bars): void {
  const config = golden.json.config as BigVisionConfig;
  const { parameters } = twoTowersFixedCase(golden);
  const stages: [string, string][] = [
    ['vision.patchEmbedding', 'img/stem'],
    ['vision.embedded', 'img/with_posemb'],
    ...blockStages('vision', 'img/encoder/', config.image.depth),
    ['vision.tokens', 'img/encoded'],
    ['vision.pooled', 'img/head_input'],
    ['vision.embedding', 'img/normalized'],
    ['text.embedded', 'txt/embedded'],
    ...blockStages('text', 'txt/', config.text.depth),
    ['text.tokens', 'txt/transformed'],
    ['text.pooled', 'txt/pre_logits'],
    ['text.projected', 'txt/logits'],
    ['text.embedding', 'txt/normalized'],
  ];
  for (const [tap, name] of stages) {
    const recorded = golden.tensor(`out/${name}`);
    // big_vision records the text embedding before the positions are added, we after.
    const expected =
      tap === 'text.embedded' ? addRow(recorded, parameters.text.positions) : recorded;
    expectClose(tap, find(run.taps, tap), expected, bars.state, golden.atol(`out/${name}`));
  }
  expectClose('loss', run.loss, golden.tensor('out/loss'), bars.state, golden.atol('out/loss'));
  const { tree, names } = bigVisionTowers(golden, 'grad');
  expectGradients(run.gradients, tree, (path, gradient) => {
    const suggested = golden.atol(`grad/${names.get(path) ?? ''}`);
    expectClose(path, find(run.gradients, path), gradient, bars.gradient, suggested);
  });
  for (const [what, name] of [
    ['vision.embedding', 'zimg'],
    ['text.embedding', 'ztxt'],
  ]) {
    const expected = golden.tensor(`grad_wrt/${name}`);
    expectClose(
      name,
      find(run.gradientsWrt, what),
      expected,
      bars.gradient,
      golden.atol(`grad_wrt/${name}`),
    );
  }
  const image = channelsFirst(golden.tensor('grad_wrt/image'));
  expectClose(
    'image',
    find(run.gradientsWrt, 'input'),
    image,
    bars.gradient,
    golden.atol('grad_wrt/image'),
  );
}

/** A vision tower alone, and the cotangent of its pooled token. */
export interface NaflexCase {
  readonly parameters: VisionTower;
  readonly images: NaflexInput;
  readonly heads: number;
  readonly cotangent: NdArray;
}

/** The tower and the batch of bv_naflex. */
export function naflexCase(golden: GoldenCase): NaflexCase {
  const { config } = golden.json.config as { readonly config: BigVisionTower };
  return {
    parameters: naflexFromBigVision((name) => golden.tensor(`param/${name}`), has(golden, 'param'))
      .tree,
    images: {
      patches: golden.tensor('in/patches'),
      mask: golden.tensor('in/type'),
      shapes: gridsOf(golden.tensor('in/yidx'), golden.tensor('in/xidx')),
    },
    heads: config.num_heads,
    cotangent: golden.tensor('in/cotangent'),
  };
}

/** Compares bv_naflex; the run's loss is Σ pooled ∘ cotangent. */
export function expectNaflex(golden: GoldenCase, run: Run, bars: Bars): void {
  const { config } = golden.json.config as { readonly config: BigVisionTower };
  const mask = golden.tensor('in/type');
  const stages: [string, string][] = [
    ['vision.patchEmbedding', 'stem'],
    ['vision.embedded', 'with_posemb'],
    ...blockStages('vision', 'encoder/', config.depth),
    ['vision.tokens', 'encoded'],
  ];
  for (const [tap, name] of stages) {
    const kept = validRows(golden.tensor(`out/${name}`), mask);
    const actual = validRows({ data: find(run.taps, tap) }, mask);
    expectClose(tap, actual, ndArray([kept.length], kept), bars.state, golden.atol(`out/${name}`));
  }
  for (const [what, tap] of [
    ['embedding', 'vision.pooled'],
    ['normalized', 'vision.embedding'],
  ]) {
    const expected = golden.tensor(`out/${what}`);
    expectClose(tap, find(run.taps, tap), expected, bars.state, golden.atol(`out/${what}`));
  }
  // A sum that cancels: the scale of its bar is that of the terms.
  expectClose('scalar', run.loss, golden.tensor('out/scalar'), () => golden.atol('out/scalar'));
  const gradients = naflexFromBigVision(
    (name) => golden.tensor(`grad/${name}`),
    has(golden, 'grad'),
  );
  expectGradients(run.gradients, gradients.tree, (path, gradient) => {
    const suggested = golden.atol(`grad/${gradients.names.get(path) ?? ''}`);
    expectClose(path, find(run.gradients, path), gradient, bars.gradient, suggested);
  });
  const patches = golden.tensor('grad_wrt/patches');
  expectClose(
    'patches',
    find(run.gradientsWrt, 'input'),
    patches,
    bars.gradient,
    golden.atol('grad_wrt/patches'),
  );
}
