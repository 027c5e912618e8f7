// The two towers, forward and backward, in float64. Every layer returns its output and a function that
// takes the gradient of the output to the gradients of its input and of its parameters; a tower runs
// its layers down and their backward functions up. Intermediates go into `taps` under the names that
// the product gives them.
import { attention, attentionBackward } from './attention';
import { add, addRow, addRowBackward, repeatRow } from './elementwise';
import { embedding, embeddingBackward } from './embedding';
import { gelu, geluBackward } from './gelu';
import { l2Normalize, l2NormalizeBackward } from './l2_normalize';
import { layerNorm, layerNormBackward } from './layer_norm';
import { linear, linearBackward } from './linear';
import type { NdArray } from './nd_array';
import { reshape, zeros } from './nd_array';
import { patchify, patchifyBackward } from './patchify';
import { positionResize, positionResizeBackward } from './position_resize';
import { sumRows } from './reduce';
import { sigmoidLoss, sigmoidLossBackward } from './sigmoid_loss';
import { tokenSelect, tokenSelectBackward } from './token';

export interface Linear {
  readonly weight: NdArray;
  readonly bias: NdArray;
}
export interface LayerNorm {
  readonly weight: NdArray;
  readonly bias: NdArray;
}
export interface Attention {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly out: Linear;
}
export interface Mlp {
  readonly fc1: Linear;
  readonly fc2: Linear;
}
export interface Block {
  readonly norm1: LayerNorm;
  readonly attention: Attention;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp;
}
export interface MapHead {
  readonly probe: NdArray;
  readonly attention: Attention;
  readonly norm: LayerNorm;
  readonly mlp: Mlp;
}
export interface VisionTower {
  readonly patchEmbedding: Linear;
  readonly positions: NdArray;
  readonly blocks: readonly Block[];
  readonly norm: LayerNorm;
  readonly head: MapHead;
}
export interface TextTower {
  readonly tokens: NdArray;
  readonly positions: NdArray;
  readonly blocks: readonly Block[];
  readonly norm: LayerNorm;
  readonly head: Linear;
}
export interface TwoTowers {
  readonly vision: VisionTower;
  readonly text: TextTower;
  readonly logitScale: NdArray;
  readonly logitBias: NdArray;
}

/** Intermediates by name. */
export type Taps = Map<string, NdArray>;

/** What the parameters do not tell about a tower. */
export interface TowerConfig {
  readonly heads: number;
}

/** NaFlex patches (B, L, P·P·3), mask (B, L) and grids (B, 2). */
export interface NaflexInput {
  readonly patches: NdArray;
  readonly mask: NdArray;
  readonly shapes: NdArray;
}

/** The output of a layer, and the way back. */
interface Layer<Gradients> {
  readonly output: NdArray;
  readonly backward: (dout: NdArray) => Gradients;
}

const LAYER_NORM_EPS = 1e-6;
const NORMALIZE_EPS = 1e-8;

function linearLayer(x: NdArray, p: Linear): Layer<{ dx: NdArray; dp: Linear }> {
  return {
    output: linear(x, p.weight, p.bias),
    backward: (dy) => {
      const { dx, dweight, dbias } = linearBackward(dy, x, p.weight);
      return { dx, dp: { weight: dweight, bias: dbias } };
    },
  };
}

function layerNormLayer(x: NdArray, p: LayerNorm): Layer<{ dx: NdArray; dp: LayerNorm }> {
  return {
    output: layerNorm(x, p.weight, p.bias, LAYER_NORM_EPS),
    backward: (dy) => {
      const { dx, dweight, dbias } = layerNormBackward(dy, x, p.weight, LAYER_NORM_EPS);
      return { dx, dp: { weight: dweight, bias: dbias } };
    },
  };
}

/** Attention of the tokens `x` (B, Tq, D) to the tokens `memory` (B, Tk, D). */
function attentionLayer(
  x: NdArray,
  memory: NdArray,
  p: Attention,
  heads: number,
  keyMask: NdArray | undefined,
): Layer<{ dx: NdArray; dmemory: NdArray; dp: Attention }> {
  const options = { heads, keyMask };
  const query = linearLayer(x, p.query);
  const key = linearLayer(memory, p.key);
  const value = linearLayer(memory, p.value);
  const mixed = attention(query.output, key.output, value.output, options);
  const out = linearLayer(mixed, p.out);
  return {
    output: out.output,
    backward: (dy) => {
      const dout = out.backward(dy);
      const { dq, dk, dv } = attentionBackward(
        dout.dx,
        query.output,
        key.output,
        value.output,
        options,
      );
      const dquery = query.backward(dq);
      const dkey = key.backward(dk);
      const dvalue = value.backward(dv);
      return {
        dx: dquery.dx,
        dmemory: add(dkey.dx, dvalue.dx),
        dp: { query: dquery.dp, key: dkey.dp, value: dvalue.dp, out: dout.dp },
      };
    },
  };
}

function mlpLayer(x: NdArray, p: Mlp): Layer<{ dx: NdArray; dp: Mlp }> {
  const fc1 = linearLayer(x, p.fc1);
  const fc2 = linearLayer(gelu(fc1.output), p.fc2);
  return {
    output: fc2.output,
    backward: (dy) => {
      const d2 = fc2.backward(dy);
      const d1 = fc1.backward(geluBackward(d2.dx, fc1.output));
      return { dx: d1.dx, dp: { fc1: d1.dp, fc2: d2.dp } };
    },
  };
}

/** x = x + attention(norm1(x)); x = x + mlp(norm2(x)). */
function blockLayer(
  x: NdArray,
  p: Block,
  heads: number,
  keyMask: NdArray | undefined,
  taps: Taps,
  name: string,
): Layer<{ dx: NdArray; dp: Block }> {
  const norm1 = layerNormLayer(x, p.norm1);
  const mixed = attentionLayer(norm1.output, norm1.output, p.attention, heads, keyMask);
  const middle = add(x, mixed.output);
  const norm2 = layerNormLayer(middle, p.norm2);
  const mlp = mlpLayer(norm2.output, p.mlp);
  const output = add(middle, mlp.output);
  taps.set(`${name}.attention`, mixed.output);
  taps.set(`${name}.attentionResidual`, middle);
  taps.set(`${name}.mlp`, mlp.output);
  taps.set(`${name}.output`, output);
  return {
    output,
    backward: (dy) => {
      const dmlp = mlp.backward(dy);
      const dnorm2 = norm2.backward(dmlp.dx);
      const dmiddle = add(dy, dnorm2.dx);
      const dmixed = mixed.backward(dmiddle);
      const dnorm1 = norm1.backward(add(dmixed.dx, dmixed.dmemory));
      return {
        dx: add(dmiddle, dnorm1.dx),
        dp: { norm1: dnorm1.dp, attention: dmixed.dp, norm2: dnorm2.dp, mlp: dmlp.dp },
      };
    },
  };
}

/** All blocks, then the final norm. */
function encoderLayer(
  x: NdArray,
  p: { readonly blocks: readonly Block[]; readonly norm: LayerNorm },
  heads: number,
  keyMask: NdArray | undefined,
  taps: Taps,
  name: string,
): Layer<{ dx: NdArray; dblocks: Block[]; dnorm: LayerNorm }> {
  const layers: Layer<{ dx: NdArray; dp: Block }>[] = [];
  let hidden = x;
  p.blocks.forEach((block, i) => {
    const layer = blockLayer(hidden, block, heads, keyMask, taps, `${name}.blocks.${String(i)}`);
    layers.push(layer);
    hidden = layer.output;
  });
  const norm = layerNormLayer(hidden, p.norm);
  taps.set(`${name}.tokens`, norm.output);
  return {
    output: norm.output,
    backward: (dy) => {
      const dnorm = norm.backward(dy);
      const dblocks: Block[] = [];
      let dx = dnorm.dx;
      for (const layer of [...layers].reverse()) {
        const gradients = layer.backward(dx);
        dblocks.unshift(gradients.dp);
        dx = gradients.dx;
      }
      return { dx, dblocks, dnorm: dnorm.dp };
    },
  };
}

/** The probe attends to the tokens: o = attention(probe, x); o + mlp(norm(o)). (B, N, D) -> (B, D). */
function mapHeadLayer(
  x: NdArray,
  p: MapHead,
  heads: number,
  keyMask: NdArray | undefined,
): Layer<{ dx: NdArray; dp: MapHead }> {
  const [B, , D] = x.shape;
  const probe = repeatRow(p.probe, B); // (B, 1, D)
  const pooled = attentionLayer(probe, x, p.attention, heads, keyMask);
  const norm = layerNormLayer(pooled.output, p.norm);
  const mlp = mlpLayer(norm.output, p.mlp);
  return {
    output: reshape(add(pooled.output, mlp.output), [B, D]),
    backward: (dout) => {
      const dy = reshape(dout, [B, 1, D]);
      const dmlp = mlp.backward(dy);
      const dnorm = norm.backward(dmlp.dx);
      const dpooled = pooled.backward(add(dy, dnorm.dx));
      return {
        dx: dpooled.dmemory,
        dp: { probe: sumRows(dpooled.dx), attention: dpooled.dp, norm: dnorm.dp, mlp: dmlp.dp },
      };
    },
  };
}

/** A vision tower: the MAP output before and after normalisation, and the way back from either. */
export interface VisionRun {
  readonly pooled: NdArray;
  readonly embedding: NdArray;
  readonly taps: Taps;
  /** Gradients of the parameters and of the input (images or patches), given that of the embedding. */
  readonly backward: (dembedding: NdArray) => { dp: VisionTower; dinput: NdArray };
  /** The same, given the gradient of the pooled token. */
  readonly backwardPooled: (dpooled: NdArray) => { dp: VisionTower; dinput: NdArray };
}

/** images (B, 3, height, width), or NaFlex patches -> embeddings (B, D). */
export function runVision(
  p: VisionTower,
  input: NdArray | NaflexInput,
  { heads }: TowerConfig,
  patch: number,
): VisionRun {
  const taps: Taps = new Map();
  const naflex = 'patches' in input;
  const keyMask = naflex ? input.mask : undefined;
  const patches = naflex ? input.patches : patchify(input, patch);
  const stem = linearLayer(patches, p.patchEmbedding);
  const embedded = naflex
    ? add(stem.output, positionResize(p.positions, input.shapes, patches.shape[1]))
    : addRow(stem.output, p.positions);
  taps.set('vision.patchEmbedding', stem.output);
  taps.set('vision.embedded', embedded);
  const encoder = encoderLayer(embedded, p, heads, keyMask, taps, 'vision');
  const head = mapHeadLayer(encoder.output, p.head, heads, keyMask);
  taps.set('vision.pooled', head.output);
  const embedding = l2Normalize(head.output, NORMALIZE_EPS);
  taps.set('vision.embedding', embedding);
  const backwardPooled = (dpooled: NdArray): { dp: VisionTower; dinput: NdArray } => {
    const dhead = head.backward(dpooled);
    const dencoder = encoder.backward(dhead.dx);
    const dstem = stem.backward(dencoder.dx);
    return {
      dp: {
        patchEmbedding: dstem.dp,
        positions: naflex
          ? positionResizeBackward(dencoder.dx, input.shapes, p.positions)
          : addRowBackward(dencoder.dx).drow,
        blocks: dencoder.dblocks,
        norm: dencoder.dnorm,
        head: dhead.dp,
      },
      dinput: naflex ? dstem.dx : patchifyBackward(dstem.dx, input, patch),
    };
  };
  return {
    pooled: head.output,
    embedding,
    taps,
    backwardPooled,
    backward: (dembedding) =>
      backwardPooled(l2NormalizeBackward(dembedding, head.output, NORMALIZE_EPS)),
  };
}

/** A text tower: the head's output before and after normalisation, and the way back. */
export interface TextRun {
  readonly projected: NdArray;
  readonly embedding: NdArray;
  readonly taps: Taps;
  readonly backward: (dembedding: NdArray) => TextTower;
}

/** ids (B, T) -> embeddings (B, E). No mask; the last token is pooled. */
export function runText(p: TextTower, ids: NdArray, { heads }: TowerConfig): TextRun {
  const taps: Taps = new Map();
  const T = ids.shape[1];
  const looked = embedding(p.tokens, ids);
  const embedded = addRow(looked, p.positions);
  taps.set('text.embedded', embedded);
  const encoder = encoderLayer(embedded, p, heads, undefined, taps, 'text');
  const pooled = tokenSelect(encoder.output, T - 1);
  taps.set('text.pooled', pooled);
  const head = linearLayer(pooled, p.head);
  taps.set('text.projected', head.output);
  const normalized = l2Normalize(head.output, NORMALIZE_EPS);
  taps.set('text.embedding', normalized);
  return {
    projected: head.output,
    embedding: normalized,
    taps,
    backward: (dembedding) => {
      const dhead = head.backward(l2NormalizeBackward(dembedding, head.output, NORMALIZE_EPS));
      const dencoder = encoder.backward(tokenSelectBackward(dhead.dx, encoder.output, T - 1));
      return {
        tokens: embeddingBackward(dencoder.dx, ids, p.tokens),
        positions: addRowBackward(dencoder.dx).drow,
        blocks: dencoder.dblocks,
        norm: dencoder.dnorm,
        head: dhead.dp,
      };
    },
  };
}

/** One forward and backward pass of the loss over a batch of pairs. */
export interface TwoTowersRun {
  readonly loss: NdArray;
  readonly vision: VisionRun;
  readonly text: TextRun;
  readonly gradients: TwoTowers;
  readonly dimageEmbeddings: NdArray;
  readonly dtextEmbeddings: NdArray;
  readonly dinput: NdArray;
}

/** Sizes that the parameters do not tell. */
export interface TwoTowersConfig {
  readonly vision: TowerConfig;
  readonly text: TowerConfig;
  /** Side of a patch; unused with NaFlex patches. */
  readonly patch: number;
}

/** Loss and all gradients of a batch of image–text pairs. */
export function runTwoTowers(
  p: TwoTowers,
  images: NdArray | NaflexInput,
  ids: NdArray,
  config: TwoTowersConfig,
): TwoTowersRun {
  const vision = runVision(p.vision, images, config.vision, config.patch);
  const text = runText(p.text, ids, config.text);
  const loss = sigmoidLoss(vision.embedding, text.embedding, p.logitScale, p.logitBias);
  const one = zeros([1]);
  one.data[0] = 1;
  const d = sigmoidLossBackward(one, vision.embedding, text.embedding, p.logitScale, p.logitBias);
  const dvision = vision.backward(d.dimages);
  return {
    loss,
    vision,
    text,
    gradients: {
      vision: dvision.dp,
      text: text.backward(d.dtexts),
      logitScale: d.dlogitScale,
      logitBias: d.dlogitBias,
    },
    dimageEmbeddings: d.dimages,
    dtextEmbeddings: d.dtexts,
    dinput: dvision.dinput,
  };
}
