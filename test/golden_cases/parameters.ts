// Checkpoint names of the reference implementations to our parameter tree, written independently of
// the product's own name maps so that each checks the other.
import { transpose } from '../reference/matmul';
import type {
  Attention,
  Block,
  LayerNorm,
  Linear,
  MapHead,
  Mlp,
  TextTower,
  TwoTowers,
  VisionTower,
} from '../reference/model';
import type { NdArray } from '../reference/nd_array';
import { elements, ndArray, reshape, zeros } from '../reference/nd_array';
import { leaves } from '../reference/tree';

/** Gives the tensor of a name, or throws. */
export type Lookup = (name: string) => NdArray;

/** Whether patches are flattened (c, y, x), of images, or (y, x, c), of NaFlex. */
export type PatchOrder = 'cyx' | 'yxc';

function count(has: (i: number) => boolean): number {
  let n = 0;
  while (has(n)) n++;
  return n;
}

/** Rows [from, to) of a matrix or a vector. */
function rowsOf(x: NdArray, from: number, to: number): NdArray {
  const size = elements(x.shape.slice(1));
  return ndArray([to - from, ...x.shape.slice(1)], x.data.subarray(from * size, to * size));
}

// ---- Hugging Face: Linear weights are (out, in) already; the MAP head fuses query, key, value. ----

/** The two towers from Hugging Face names; `names` lists the tensors there are. */
export function fromHuggingFace(get: Lookup, names: ReadonlySet<string>): TwoTowers {
  const linear = (name: string): Linear => ({
    weight: get(`${name}.weight`),
    bias: get(`${name}.bias`),
  });
  const norm = (name: string): LayerNorm => linear(name);
  const mlp = (name: string): Mlp => ({ fc1: linear(`${name}.fc1`), fc2: linear(`${name}.fc2`) });
  const blocks = (tower: string): Block[] => {
    const layer = (i: number): string => `${tower}.encoder.layers.${String(i)}`;
    const depth = count((i) => names.has(`${layer(i)}.layer_norm1.weight`));
    return Array.from({ length: depth }, (_, i) => ({
      norm1: norm(`${layer(i)}.layer_norm1`),
      attention: {
        query: linear(`${layer(i)}.self_attn.q_proj`),
        key: linear(`${layer(i)}.self_attn.k_proj`),
        value: linear(`${layer(i)}.self_attn.v_proj`),
        out: linear(`${layer(i)}.self_attn.out_proj`),
      },
      norm2: norm(`${layer(i)}.layer_norm2`),
      mlp: mlp(`${layer(i)}.mlp`),
    }));
  };
  const patch = get('vision_model.embeddings.patch_embedding.weight');
  const D = patch.shape[0];
  const head = 'vision_model.head';
  const fused = (part: number): Linear => ({
    weight: rowsOf(get(`${head}.attention.in_proj_weight`), part * D, (part + 1) * D),
    bias: rowsOf(get(`${head}.attention.in_proj_bias`), part * D, (part + 1) * D),
  });
  return {
    vision: {
      patchEmbedding: {
        weight: reshape(patch, [D, patch.data.length / D]),
        bias: get('vision_model.embeddings.patch_embedding.bias'),
      },
      positions: get('vision_model.embeddings.position_embedding.weight'),
      blocks: blocks('vision_model'),
      norm: norm('vision_model.post_layernorm'),
      head: {
        probe: reshape(get(`${head}.probe`), [1, D]),
        attention: {
          query: fused(0),
          key: fused(1),
          value: fused(2),
          out: linear(`${head}.attention.out_proj`),
        },
        norm: norm(`${head}.layernorm`),
        mlp: mlp(`${head}.mlp`),
      },
    },
    text: {
      tokens: get('text_model.embeddings.token_embedding.weight'),
      positions: get('text_model.embeddings.position_embedding.weight'),
      blocks: blocks('text_model'),
      norm: norm('text_model.final_layer_norm'),
      head: linear('text_model.head'),
    },
    logitScale: get('logit_scale'),
    logitBias: get('logit_bias'),
  };
}

// ---- big_vision: kernels are (in, out), attention kernels (D, H, hd) and (H, hd, D). ----

/** Reads big_vision tensors into our layout and remembers which name each leaf came from. */
class BigVision {
  private readonly origins = new Map<NdArray, string>();

  constructor(
    private readonly get: Lookup,
    private readonly has: (name: string) => boolean,
  ) {}

  /** Our path of every leaf of `tree` -> the name it was read from. */
  names(tree: object): Map<string, string> {
    const names = new Map<string, string>();
    for (const [path, leaf] of leaves(tree)) {
      const origin = this.origins.get(leaf);
      if (origin !== undefined) names.set(path, origin);
    }
    return names;
  }

  private keep(name: string, leaf: NdArray): NdArray {
    this.origins.set(leaf, name);
    return leaf;
  }

  /** A tensor under another shape. */
  shaped(name: string, shape: (source: NdArray) => readonly number[]): NdArray {
    const source = this.get(name);
    return this.keep(name, reshape(source, shape(source)));
  }

  vector(name: string): NdArray {
    return this.shaped(name, (x) => [x.data.length]);
  }

  /** A kernel whose first `inputs` axes are the input, as (out, in). */
  kernel(name: string, inputs: number): NdArray {
    const x = this.get(name);
    const rows = elements(x.shape.slice(0, inputs));
    return this.keep(name, transpose(reshape(x, [rows, x.data.length / rows])));
  }

  /** A convolution kernel (p, p, 3, D) as (D, 3·p·p) in order (c, y, x). */
  convolution(name: string): NdArray {
    const x = this.get(name);
    const [P, , C, D] = x.shape;
    const weight = zeros([D, C * P * P]);
    for (let d = 0; d < D; d++) {
      for (let c = 0; c < C; c++) {
        for (let yx = 0; yx < P * P; yx++) {
          weight.data[(d * C + c) * P * P + yx] = x.data[(yx * C + c) * D + d];
        }
      }
    }
    return this.keep(name, weight);
  }

  linear(name: string, inputs = 1): Linear {
    return { weight: this.kernel(`${name}/kernel`, inputs), bias: this.vector(`${name}/bias`) };
  }

  norm(name: string): LayerNorm {
    return { weight: this.vector(`${name}/scale`), bias: this.vector(`${name}/bias`) };
  }

  attention(name: string): Attention {
    return {
      query: this.linear(`${name}/query`),
      key: this.linear(`${name}/key`),
      value: this.linear(`${name}/value`),
      out: this.linear(`${name}/out`, 2),
    };
  }

  mlp(name: string): Mlp {
    return { fc1: this.linear(`${name}/Dense_0`), fc2: this.linear(`${name}/Dense_1`) };
  }

  blocks(name: string): Block[] {
    const block = (i: number): string => `${name}/encoderblock_${String(i)}`;
    const depth = count((i) => this.has(`${block(i)}/LayerNorm_0/scale`));
    return Array.from({ length: depth }, (_, i) => ({
      norm1: this.norm(`${block(i)}/LayerNorm_0`),
      attention: this.attention(`${block(i)}/MultiHeadDotProductAttention_0`),
      norm2: this.norm(`${block(i)}/LayerNorm_1`),
      mlp: this.mlp(`${block(i)}/MlpBlock_0`),
    }));
  }

  mapHead(name: string): MapHead {
    return {
      probe: this.shaped(`${name}/probe`, (x) => [1, x.data.length]),
      attention: this.attention(`${name}/MultiHeadDotProductAttention_0`),
      norm: this.norm(`${name}/LayerNorm_0`),
      mlp: this.mlp(`${name}/MlpBlock_0`),
    };
  }

  /** `prefix` is `img/` in a pair of towers and empty in a tower alone. */
  vision(prefix: string, order: PatchOrder): VisionTower {
    const kernel = `${prefix}embedding/kernel`;
    return {
      patchEmbedding: {
        weight: order === 'cyx' ? this.convolution(kernel) : this.kernel(kernel, 1),
        bias: this.vector(`${prefix}embedding/bias`),
      },
      positions: this.shaped(`${prefix}pos_embedding`, ({ shape }) => [
        shape[0] * shape[1],
        shape[2],
      ]),
      blocks: this.blocks(`${prefix}Transformer`),
      norm: this.norm(`${prefix}Transformer/encoder_norm`),
      head: this.mapHead(`${prefix}MAPHead_0`),
    };
  }

  text(prefix: string): TextTower {
    return {
      tokens: this.shaped(`${prefix}Embed_0/embedding`, (x) => x.shape),
      positions: this.shaped(`${prefix}pos_embedding`, (x) => x.shape.slice(1)),
      blocks: this.blocks(`${prefix}Encoder_0`),
      norm: this.norm(`${prefix}Encoder_0/encoder_norm`),
      head: this.linear(`${prefix}head`),
    };
  }
}

/** A tree and, for every path in it, the name the leaf was read from. */
export interface Named<T> {
  readonly tree: T;
  readonly names: ReadonlyMap<string, string>;
}

/** The two towers from big_vision names (img/…, txt/…, t, b). */
export function fromBigVision(get: Lookup, has: (name: string) => boolean): Named<TwoTowers> {
  const reader = new BigVision(get, has);
  const tree = {
    vision: reader.vision('img/', 'cyx'),
    text: reader.text('txt/'),
    logitScale: reader.vector('t'),
    logitBias: reader.vector('b'),
  };
  return { tree, names: reader.names(tree) };
}

/** A NaFlex vision tower from big_vision names without prefix. */
export function naflexFromBigVision(
  get: Lookup,
  has: (name: string) => boolean,
): Named<VisionTower> {
  const reader = new BigVision(get, has);
  const tree = reader.vision('', 'yxc');
  return { tree, names: reader.names(tree) };
}
