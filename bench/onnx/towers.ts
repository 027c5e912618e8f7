// The towers as ONNX graphs, from a checkpoint in Hugging Face layout. Several forms of the same
// arithmetic, so that the peer can be given the one it runs fastest.
import type { ModelConfig, TowerConfig } from '../../lib/model';
import { openSafetensors } from '../../lib/weights';
import type { LinearForm, Value } from './graph';
import { OnnxGraph } from './graph';
import type { OnnxModel } from './model_file';

/** The form in which a graph is written. */
export interface GraphForm {
  readonly linear: LinearForm;
  /**
   * `'decomposed'`: MatMul, Softmax, MatMul as exporters write it; `'multi_head'`: onnxruntime's
   * MultiHeadAttention; `'packed'`: its Attention with the projections inside (float32 only).
   */
  readonly attention: 'decomposed' | 'multi_head' | 'packed';
  /** `'standard'`: Gelu of opset 20; `'decomposed'`: its formula; `'fast'`: FastGelu with the bias. */
  readonly gelu: 'standard' | 'decomposed' | 'fast';
  /** `'skip'`: the residual sum inside onnxruntime's SkipLayerNormalization. */
  readonly norm: 'standard' | 'skip';
  /** Patch embedding as convolution, as exporters write it, or as a linear layer. */
  readonly patches: 'convolution' | 'linear';
}

type Read = (name: string) => () => Promise<Float32Array>;

/** A tower of one checkpoint. Constants are read when the model is written, so keep the file. */
export interface TowerExport {
  readonly model: OnnxModel;
  dispose(): void;
}

class TowerBuilder {
  readonly graph: OnnxGraph;

  constructor(
    readonly form: GraphForm,
    readonly read: Read,
    private readonly eps: number,
  ) {
    this.graph = new OnnxGraph(form.linear);
  }

  linear(x: Value, name: string, outWidth: number, inWidth: number): Promise<Value> {
    const { read } = this;
    return this.graph.linear(x, read(`${name}.weight`), read(`${name}.bias`), [outWidth, inWidth]);
  }

  layerNorm(x: Value, name: string, width: number): Value {
    return this.graph.node(
      'LayerNormalization',
      [x, this.vector(`${name}.weight`, width), this.vector(`${name}.bias`, width)],
      { epsilon: { float: this.eps }, axis: { int: -1 } },
    );
  }

  /** x + y and its norm. */
  residualNorm(x: Value, y: Value, name: string, width: number): readonly [Value, Value] {
    if (this.form.norm === 'standard') {
      const sum = this.graph.add(x, y);
      return [sum, this.layerNorm(sum, name, width)];
    }
    const weights = [this.vector(`${name}.weight`, width), this.vector(`${name}.bias`, width)];
    const [norm, , , sum] = this.graph.nodeOf(
      'SkipLayerNormalization',
      [x, y, ...weights],
      4,
      { epsilon: { float: this.eps } },
      'com.microsoft',
    );
    return [sum, norm];
  }

  gelu(x: Value): Value {
    const { graph } = this;
    switch (this.form.gelu) {
      case 'standard':
        return graph.node('Gelu', [x], { approximate: { string: 'tanh' } });
      case 'fast':
        return graph.contrib('FastGelu', [x]);
      case 'decomposed': {
        // 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), node by node as torch exports it.
        const cube = graph.node('Pow', [x, graph.scalar(3)]);
        const inner = graph.add(x, graph.node('Mul', [cube, graph.scalar(0.044715)]));
        const scaled = graph.node('Mul', [inner, graph.scalar(Math.sqrt(2 / Math.PI))]);
        const one = graph.add(graph.node('Tanh', [scaled]), graph.scalar(1));
        return graph.node('Mul', [graph.node('Mul', [x, graph.scalar(0.5)]), one]);
      }
    }
  }

  async mlp(x: Value, name: string, { width, mlpWidth }: TowerConfig): Promise<Value> {
    const hidden = await this.linear(x, `${name}.fc1`, mlpWidth, width);
    return this.linear(this.gelu(hidden), `${name}.fc2`, width, mlpWidth);
  }

  /** Softmax(q kᵀ / √(head width) + bias) v over (B, T, D) tensors. */
  attend(q: Value, k: Value, v: Value, { width, heads }: TowerConfig, bias?: Value): Value {
    const { graph } = this;
    const headWidth = width / heads;
    if (this.form.attention !== 'decomposed') {
      const optional = bias === undefined ? [] : ['', '', bias];
      return graph.contrib('MultiHeadAttention', [q, k, v, ...optional], {
        num_heads: { int: heads },
      });
    }
    const split = (x: Value, perm: readonly number[]): Value =>
      graph.node(
        'Transpose',
        [graph.node('Reshape', [x, graph.integers([0, -1, heads, headWidth])])],
        { perm: { ints: perm } },
      );
    const scores = graph.node('Mul', [
      graph.node('MatMul', [split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1])]),
      graph.scalar(1 / Math.sqrt(headWidth)),
    ]);
    const biased = bias === undefined ? scores : graph.add(scores, bias);
    const weights = graph.node('Softmax', [biased], { axis: { int: -1 } });
    const mixed = graph.node('MatMul', [weights, split(v, [0, 2, 1, 3])]);
    const together = graph.node('Transpose', [mixed], { perm: { ints: [0, 2, 1, 3] } });
    return graph.node('Reshape', [together, graph.integers([0, -1, width])]);
  }

  /** A bias of keys (B, 1, 1, L) as MultiHeadAttention wants it, (B, 1, L, L). */
  biasOfQueries(bias: Value, tokens: Value): Value {
    const { graph } = this;
    if (this.form.attention === 'decomposed') return bias;
    const length = graph.node('Shape', [tokens], { start: { int: 1 }, end: { int: 2 } });
    const parts = [graph.integers([1, 1]), length, graph.integers([1])];
    return graph.node('Expand', [bias, graph.node('Concat', parts, { axis: { int: 0 } })]);
  }

  async selfAttention(x: Value, name: string, tower: TowerConfig, bias?: Value): Promise<Value> {
    const { width, heads } = tower;
    const { graph, read, form } = this;
    let mixed: Value;
    if (form.attention === 'packed' && form.linear.kind === 'float32' && bias === undefined) {
      const parts = ['q_proj', 'k_proj', 'v_proj'].map((part) => `${name}.${part}`);
      const weight = async (): Promise<Float32Array> => {
        const packed = new Float32Array(3 * width * width);
        for (const [p, part] of parts.entries()) {
          const matrix = await read(`${part}.weight`)();
          for (let o = 0; o < width; o++) {
            for (let i = 0; i < width; i++) {
              packed[i * 3 * width + p * width + o] = matrix[o * width + i];
            }
          }
        }
        return packed;
      };
      const offsets = async (): Promise<Float32Array> => {
        const packed = new Float32Array(3 * width);
        for (const [p, part] of parts.entries())
          packed.set(await read(`${part}.bias`)(), p * width);
        return packed;
      };
      mixed = graph.contrib(
        'Attention',
        [x, graph.floats([width, 3 * width], weight), graph.floats([3 * width], offsets)],
        { num_heads: { int: heads } },
      );
    } else {
      const q = await this.linear(x, `${name}.q_proj`, width, width);
      const k = await this.linear(x, `${name}.k_proj`, width, width);
      const v = await this.linear(x, `${name}.v_proj`, width, width);
      mixed = this.attend(q, k, v, tower, bias);
    }
    return this.linear(mixed, `${name}.out_proj`, width, width);
  }

  /** Blocks and final norm. */
  async encoder(
    x: Value,
    prefix: string,
    finalNorm: string,
    tower: TowerConfig,
    bias?: Value,
  ): Promise<Value> {
    const layer = (i: number): string => `${prefix}.encoder.layers.${String(i)}`;
    const { width, depth } = tower;
    let residual = x;
    let normed = this.layerNorm(x, `${layer(0)}.layer_norm1`, width);
    for (let i = 0; i < depth; i++) {
      const attended = await this.selfAttention(normed, `${layer(i)}.self_attn`, tower, bias);
      const norm2 = `${layer(i)}.layer_norm2`;
      const [between, hidden] = this.residualNorm(residual, attended, norm2, width);
      const transformed = await this.mlp(hidden, `${layer(i)}.mlp`, tower);
      const next = i + 1 < depth ? `${layer(i + 1)}.layer_norm1` : finalNorm;
      [residual, normed] = this.residualNorm(between, transformed, next, width);
    }
    return normed;
  }

  /** Attention pooling; the query is the same for every image and comes as a constant. */
  async mapHead(tokens: Value, name: string, tower: TowerConfig, bias?: Value): Promise<Value> {
    const { graph, read } = this;
    const { width } = tower;
    const weightOf = read(`${name}.attention.in_proj_weight`);
    const biasOf = read(`${name}.attention.in_proj_bias`);
    const part = (source: () => Promise<Float32Array>, p: number, count: number) => async () =>
      (await source()).subarray(p * count, (p + 1) * count);
    const project = (p: number): Promise<Value> =>
      graph.linear(tokens, part(weightOf, p, width * width), part(biasOf, p, width), [
        width,
        width,
      ]);
    const query = graph.floats([1, 1, width], async () => {
      const [probe, weight, offset] = [
        await read(`${name}.probe`)(),
        await weightOf(),
        await biasOf(),
      ];
      return Float32Array.from({ length: width }, (_, o) => {
        let sum = offset[o];
        for (let i = 0; i < width; i++) sum += weight[o * width + i] * probe[i];
        return sum;
      });
    });
    const batch = graph.node('Shape', [tokens], { start: { int: 0 }, end: { int: 1 } });
    const shape = graph.node('Concat', [batch, graph.integers([1, width])], { axis: { int: 0 } });
    const repeated = graph.node('Expand', [query, shape]);
    const mixed = this.attend(repeated, await project(1), await project(2), tower, bias);
    const attended = await this.linear(mixed, `${name}.attention.out_proj`, width, width);
    const normed = this.layerNorm(attended, `${name}.layernorm`, width);
    const sum = graph.add(attended, await this.mlp(normed, `${name}.mlp`, tower));
    return graph.node('Reshape', [sum, graph.integers([-1, width])]);
  }

  /** Names a value `pooler_output`. */
  output(value: Value): string {
    this.graph.named(value, 'pooler_output');
    return 'pooler_output';
  }

  vector(name: string, width: number): Value {
    return this.graph.floats([width], this.read(name));
  }
}

function open(folderFile: string, form: GraphForm, eps: number): [TowerBuilder, () => void] {
  const file = openSafetensors(folderFile);
  const read: Read = (name) => async () => {
    const values = await file.read(name);
    if (values instanceof Float32Array) return values;
    throw new Error(`${name} must be float32`);
  };
  return [
    new TowerBuilder(form, read, eps),
    () => {
      file.dispose();
    },
  ];
}

/**
 * A vision tower: `pixel_values` (B, 3, S, S) -> `pooler_output` (B, D).
 *
 * @param weights - a model.safetensors of transformers
 */
export async function exportVision(
  weights: string,
  { vision, layerNormEps }: ModelConfig,
  form: GraphForm,
): Promise<TowerExport> {
  if (vision.layout !== 'fixed') throw new Error('exportVision: layout must be fixed');
  const [builder, dispose] = open(weights, form, layerNormEps);
  const { graph, read } = builder;
  const { width, patch, imageSize, positions } = vision;
  const side = Math.floor(imageSize / patch);
  const name = 'vision_model.embeddings.patch_embedding';
  let embedded: Value;
  if (form.patches === 'convolution') {
    const kernel = graph.floats([width, 3, patch, patch], read(`${name}.weight`));
    const maps = graph.node(
      'Conv',
      ['pixel_values', kernel, builder.vector(`${name}.bias`, width)],
      { kernel_shape: { ints: [patch, patch] }, strides: { ints: [patch, patch] } },
    );
    const flat = graph.node('Reshape', [maps, graph.integers([0, width, positions])]);
    embedded = graph.node('Transpose', [flat], { perm: { ints: [0, 2, 1] } });
  } else {
    const cells = graph.node('Reshape', [
      side * patch === imageSize
        ? 'pixel_values'
        : graph.node('Slice', [
            'pixel_values',
            graph.integers([0, 0]),
            graph.integers([side * patch, side * patch]),
            graph.integers([2, 3]),
          ]),
      graph.integers([-1, 3, side, patch, side, patch]),
    ]);
    const byPatch = graph.node('Transpose', [cells], { perm: { ints: [0, 2, 4, 1, 3, 5] } });
    const rows = graph.node('Reshape', [
      byPatch,
      graph.integers([-1, positions, 3 * patch * patch]),
    ]);
    embedded = await builder.linear(rows, name, width, 3 * patch * patch);
  }
  const table = graph.floats(
    [positions, width],
    read('vision_model.embeddings.position_embedding.weight'),
  );
  const tokens = await builder.encoder(
    graph.add(embedded, table),
    'vision_model',
    'vision_model.post_layernorm',
    vision,
  );
  const pooled = await builder.mapHead(tokens, 'vision_model.head', vision);
  const model = graph.model(
    'vision',
    [{ name: 'pixel_values', type: 'float32', shape: ['batch', 3, imageSize, imageSize] }],
    [{ name: builder.output(pooled), type: 'float32', shape: ['batch', width] }],
  );
  return { model, dispose };
}

/**
 * A NaFlex vision tower. Positions come resized, (B, L, D) `positions`: what the resizing costs is
 * not counted against the peer. `pixel_values` (B, L, P·P·3); with `masked`, `attention_bias`
 * (B, 1, 1, L), 0 for real tokens and a large negative number for padding.
 */
export async function exportNaflex(
  weights: string,
  { vision, layerNormEps }: ModelConfig,
  form: GraphForm,
  masked: boolean,
): Promise<TowerExport> {
  const [builder, dispose] = open(weights, form, layerNormEps);
  const { width, patch } = vision;
  const rowWidth = 3 * patch * patch;
  const name = 'vision_model.embeddings.patch_embedding';
  const embedded = await builder.linear('pixel_values', name, width, rowWidth);
  const bias = masked ? 'attention_bias' : undefined;
  const tokens = await builder.encoder(
    builder.graph.add(embedded, 'positions'),
    'vision_model',
    'vision_model.post_layernorm',
    vision,
    bias === undefined ? undefined : builder.biasOfQueries(bias, embedded),
  );
  const pooled = await builder.mapHead(tokens, 'vision_model.head', vision, bias);
  const model = builder.graph.model(
    'naflex',
    [
      { name: 'pixel_values', type: 'float32', shape: ['batch', 'length', rowWidth] },
      { name: 'positions', type: 'float32', shape: ['batch', 'length', width] },
      ...(masked
        ? [{ name: 'attention_bias', type: 'float32', shape: ['batch', 1, 1, 'length'] } as const]
        : []),
    ],
    [{ name: builder.output(pooled), type: 'float32', shape: ['batch', width] }],
  );
  return { model, dispose };
}

/** A text tower: `input_ids` (B, T) int64 -> `pooler_output` (B, E). */
export async function exportText(
  weights: string,
  { text, embedding, layerNormEps }: ModelConfig,
  form: GraphForm,
): Promise<TowerExport> {
  const [builder, dispose] = open(weights, form, layerNormEps);
  const { graph, read } = builder;
  const { width, vocabulary, length } = text;
  const name = 'text_model.embeddings';
  const table = graph.floats([vocabulary, width], read(`${name}.token_embedding.weight`));
  const positions = graph.floats([length, width], read(`${name}.position_embedding.weight`));
  const embedded = graph.add(graph.node('Gather', [table, 'input_ids']), positions);
  const tokens = await builder.encoder(embedded, 'text_model', 'text_model.final_layer_norm', text);
  const index = graph.integers([length - 1]);
  const last = graph.node('Reshape', [
    graph.node('Gather', [tokens, index], { axis: { int: 1 } }),
    graph.integers([-1, width]),
  ]);
  const pooled = await builder.linear(last, 'text_model.head', embedding, width);
  const model = graph.model(
    'text',
    [{ name: 'input_ids', type: 'int64', shape: ['batch', length] }],
    [{ name: builder.output(pooled), type: 'float32', shape: ['batch', embedding] }],
  );
  return { model, dispose };
}
