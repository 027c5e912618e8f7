// Runs the product on the golden cases: both towers, the loss and every gradient as one program, its
// intermediates read by their tap names.
import type { Device, DeviceArray } from '../../lib/array';
import type { MapTree, RunInput, Spec, Tensor } from '../../lib/graph';
import { compile, flatten, gradient } from '../../lib/graph';
import type {
  ModelConfig,
  PackedInput,
  TwoTowersInput,
  TwoTowersParameters,
  VisionInput,
  VisionParameters,
} from '../../lib/model';
import {
  packedInputSpecs,
  packedRows,
  twoTowers,
  twoTowersInputSpecs,
  twoTowersParameters,
  visionInputSpecs,
  visionParameters,
  visionTower,
} from '../../lib/model';
import type { HostArray } from '../../lib/native/spec';
import { dot, sigmoidLoss } from '../../lib/ops';
import type { NaflexInput } from '../reference/model';
import type { NdArray } from '../reference/nd_array';
import { leaves } from '../reference/tree';
import type { NaflexCase, Numbers, Run, TwoTowersCase } from './subject';

const specOf = ({ dtype, shape }: Spec): Spec => ({ dtype, shape });

/** The values of a reference tree, by the paths of the product's. */
export function hostValues(tree: object): ReadonlyMap<string, Float32Array> {
  return new Map(leaves(tree).map(([path, leaf]) => [path, Float32Array.from(leaf.data)]));
}

/** The product's parameter tree with the values of a reference tree. */
export function hostParameters(
  config: ModelConfig,
  tree: object,
): TwoTowersParameters<Float32Array> {
  const values = hostValues(tree);
  return twoTowersParameters(config, ({ path, shape }) => {
    const value = values.get(path);
    const elements = shape.reduce((product, extent) => product * extent, 1);
    if (value?.length !== elements) {
      throw new Error(`golden: ${path} must have ${String(elements)} values in the case`);
    }
    return value;
  });
}

/** Sizes of the towers of a case, read off its tensors. */
export function configOf(golden: TwoTowersCase): ModelConfig {
  const { parameters, images } = golden;
  const { vision, text } = parameters;
  const tower = {
    width: vision.positions.shape[1],
    depth: vision.blocks.length,
    mlpWidth: vision.blocks[0].mlp.fc1.bias.shape[0],
    heads: golden.visionHeads,
    patch: golden.patch,
    positions: vision.positions.shape[0],
    pool: 'map' as const,
  };
  return {
    vision:
      'patches' in images
        ? { ...tower, layout: 'naflex' }
        : { ...tower, layout: 'fixed', imageSize: images.shape[2] },
    text: {
      width: text.positions.shape[1],
      depth: text.blocks.length,
      mlpWidth: text.blocks[0].mlp.fc1.bias.shape[0],
      heads: golden.textHeads,
      vocabulary: text.tokens.shape[0],
      length: text.positions.shape[0],
      pool: 'last',
    },
    embedding: text.head.bias.shape[0],
    layerNormEps: 1e-6,
  };
}

/** Images or patches as the product takes them. */
export function hostImages(images: NdArray | NaflexInput): VisionInput<HostArray> {
  if (!('patches' in images)) return { images: Float32Array.from(images.data) };
  return {
    patches: Float32Array.from(images.patches.data),
    shapes: Int32Array.from(images.shapes.data),
    mask: Uint8Array.from(images.mask.data),
  };
}

/** The same without padding. */
function packedImages({ patches, shapes, mask }: NaflexInput): PackedInput<HostArray> {
  const [batch, length, width] = patches.shape;
  const segments = new Int32Array(batch + 1);
  for (let b = 0; b < batch; b++) {
    segments[b + 1] = segments[b] + shapes.data[2 * b] * shapes.data[2 * b + 1];
  }
  const rows = new Float32Array(packedRows(segments[batch]) * width);
  let next = 0;
  for (let row = 0; row < batch * length; row++) {
    if (mask.data[row] === 0) continue;
    rows.set(patches.data.subarray(row * width, (row + 1) * width), next * width);
    next++;
  }
  return { patches: rows, shapes: Int32Array.from(shapes.data), segments };
}

/** What is one row per packed patch, as rows of the padded batch; anything else as it is. */
function spread(name: string, packed: ArrayLike<number>, { mask }: NaflexInput): ArrayLike<number> {
  if (/\.(pooled|embedding)$/.test(name)) return packed;
  const valid = mask.data.reduce((sum, one) => sum + one, 0);
  const width = packed.length / packedRows(valid);
  const padded = new Float64Array(mask.data.length * width);
  let next = 0;
  mask.data.forEach((one, row) => {
    if (one === 0) return;
    for (let d = 0; d < width; d++) padded[row * width + d] = packed[next * width + d];
    next++;
  });
  return padded;
}

async function numbers(tree: object): Promise<Numbers> {
  const result = new Map<string, ArrayLike<number>>();
  for (const { path, leaf } of flatten(tree)) {
    const array = leaf as DeviceArray;
    result.set(path, await array.read());
    array.dispose();
  }
  return result;
}

interface PairInputs {
  readonly parameters: TwoTowersParameters<Spec>;
  readonly batch: TwoTowersInput<Spec>;
}

function pixels(input: VisionInput<Tensor>): Tensor {
  return 'patches' in input ? input.patches : input.images;
}

/** Loss, taps and gradients of a pair of towers. */
export async function runTwoTowers(
  config: ModelConfig,
  parameters: TwoTowersParameters<RunInput>,
  golden: Pick<TwoTowersCase, 'images' | 'ids'>,
  device: Device = 'cpu',
): Promise<Run> {
  const { images, ids } = golden;
  const length = 'patches' in images ? images.patches.shape[1] : undefined;
  const program = compile(
    'golden pair',
    (tensors: MapTree<PairInputs, Spec, Tensor>) => {
      const { vision, text } = twoTowers(tensors.parameters, config, tensors.batch);
      const { logitScale, logitBias } = tensors.parameters;
      const loss = sigmoidLoss(vision.embedding, text.embedding, logitScale, logitBias);
      const wrt = {
        parameters: tensors.parameters,
        images: vision.embedding,
        texts: text.embedding,
        input: pixels(tensors.batch.vision),
      };
      return { loss, gradients: gradient(loss, wrt) };
    },
    {
      parameters: twoTowersParameters(config, specOf),
      batch: twoTowersInputSpecs(config, ids.shape[0], length),
    },
    { taps: true, device },
  );
  const { outputs, taps } = await program.runWithTaps({
    parameters,
    batch: { vision: hostImages(images), ids: Int32Array.from(ids.data) },
  });
  program.dispose();
  const { loss, gradients } = outputs;
  const wrt = await numbers({
    'vision.embedding': gradients.images,
    'text.embedding': gradients.texts,
    input: gradients.input,
  });
  return {
    taps: await numbers(Object.fromEntries(taps)),
    loss: await readAndDispose(loss),
    gradients: await numbers(gradients.parameters),
    gradientsWrt: wrt,
  };
}

async function readAndDispose(array: DeviceArray): Promise<HostArray> {
  const values = await array.read();
  array.dispose();
  return values;
}

interface VisionInputs {
  readonly parameters: VisionParameters<Spec>;
  readonly images: VisionInput<Spec>;
  readonly cotangent: Spec;
}

/**
 * Σ pooled ∘ cotangent of a vision tower alone, its taps and gradients. A packed run gives them as rows
 * of the padded batch.
 */
export async function runVision(
  golden: NaflexCase,
  layout: 'padded' | 'packed' = 'padded',
  device: Device = 'cpu',
): Promise<Run> {
  const { parameters, images, heads, cotangent } = golden;
  const packed = layout === 'packed';
  const batch = cotangent.shape[0];
  const valid = images.mask.data.reduce((sum, one) => sum + one, 0);
  const [, inputs] = parameters.patchEmbedding.weight.shape;
  const config: ModelConfig = {
    vision: {
      layout: 'naflex',
      width: cotangent.shape[1],
      depth: parameters.blocks.length,
      mlpWidth: parameters.blocks[0].mlp.fc1.bias.shape[0],
      heads,
      patch: Math.sqrt(inputs / 3),
      positions: parameters.positions.shape[0],
      pool: 'map',
    },
    // Not run: a vision tower comes with a whole config.
    text: { width: 1, depth: 1, mlpWidth: 1, heads: 1, vocabulary: 1, length: 1, pool: 'last' },
    embedding: cotangent.shape[1],
    layerNormEps: 1e-6,
  };
  const values = hostValues({ vision: parameters });
  const program = compile(
    'golden tower',
    (tensors: MapTree<VisionInputs, Spec, Tensor>) => {
      const { pooled } = visionTower(tensors.parameters, config, tensors.images);
      if (pooled === undefined) throw new Error('golden: the tower must be pooled');
      const loss = dot(pooled, tensors.cotangent);
      const wrt = { parameters: tensors.parameters, input: pixels(tensors.images) };
      return { loss, gradients: gradient(loss, wrt) };
    },
    {
      parameters: visionParameters(config, specOf),
      images: packed
        ? packedInputSpecs(config, batch, packedRows(valid))
        : visionInputSpecs(config, batch, images.patches.shape[1]),
      cotangent: { dtype: 'float32', shape: cotangent.shape },
    } satisfies VisionInputs,
    { taps: true, device },
  );
  const { outputs, taps } = await program.runWithTaps({
    parameters: visionParameters(config, ({ path }) => values.get(path) ?? new Float32Array()),
    images: packed ? packedImages(images) : hostImages(images),
    cotangent: Float32Array.from(cotangent.data),
  });
  program.dispose();
  const { loss, gradients } = outputs;
  const rows = (all: Numbers): Numbers =>
    packed ? new Map([...all].map(([name, x]) => [name, spread(name, x, images)])) : all;
  return {
    taps: rows(await numbers(Object.fromEntries(taps))),
    gradientsWrt: rows(await numbers({ input: gradients.input })),
    loss: await readAndDispose(loss),
    gradients: await numbers(gradients.parameters),
  };
}
