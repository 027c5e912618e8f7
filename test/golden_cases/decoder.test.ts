// The captioning decoder against the original: autoregressive, in parallel, both in one batch, and with a
// part of the inputs masked.
import type { DeviceArray } from '../../lib/array';
import type { Spec, Tensor } from '../../lib/graph';
import { compile, flatten, gradient } from '../../lib/graph';
import { captionLoss } from '../../lib/loss';
import type { DecoderConfig, DecoderParameters } from '../../lib/model';
import { decoder, decoderParameters } from '../../lib/model';
import * as ops from '../../lib/ops';
import type { HostTensor } from '../../lib/weights';
import { bigVisionDecoderTensors, decoderFromBigVision } from '../../lib/weights';
import type { NdArray } from '../reference/nd_array';
import { expectClose, within } from './close';
import type { GoldenCase } from './golden';
import { describeGolden } from './golden';

const modes = ['ar', 'parallel', 'mixed', 'partial'] as const;

function configOf(golden: GoldenCase): DecoderConfig {
  const config = golden.json.config as Readonly<Record<string, number>>;
  return {
    width: config.width,
    depth: config.depth,
    heads: config.num_heads,
    mlpWidth: config.mlp_dim,
    vocabulary: config.vocab,
    length: config.text_len,
    memoryWidth: config.memory_width,
    attentionBias: false,
    blockBias: false,
    layerNormEps: 1e-6,
  };
}

// The arrays of big_vision's tree under a prefix of the case.
function tensorsOf(
  golden: GoldenCase,
  config: DecoderConfig,
  prefix: string,
): Map<string, HostTensor> {
  return new Map(
    bigVisionDecoderTensors(config).map(({ name }) => {
      const { shape, data } = golden.tensor(`${prefix}/${name}`);
      return [name, { shape, data: Float32Array.from(data) }];
    }),
  );
}

// The mask of an example is all ones, or a triangle.
function causalOf(mask: NdArray): Uint8Array {
  const [batch, queries, keys] = mask.shape;
  return Uint8Array.from({ length: batch }, (_, b) => {
    const at = (i: number, j: number): number => mask.data[(b * queries + i) * keys + j];
    const causal = at(0, keys - 1) === 0 ? 1 : 0;
    for (let i = 0; i < queries; i++) {
      for (let j = 0; j < keys; j++) expect(at(i, j)).toBe(causal === 1 && j > i ? 0 : 1);
    }
    return causal;
  });
}

interface Results {
  readonly logits: Float32Array;
  readonly loss: Float32Array;
  readonly memory: Float32Array;
  /** By path of our tree. */
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

interface Inputs<Leaf> {
  readonly parameters: DecoderParameters<Leaf>;
  readonly ids: Leaf;
  readonly causal: Leaf;
  readonly memory: Leaf;
  readonly labels: Leaf;
  readonly weights: Leaf;
}

async function run(
  golden: GoldenCase,
  mode: (typeof modes)[number],
  checkpoint = false,
): Promise<Results> {
  const config = configOf(golden);
  const labels = golden.tensor('in/labels');
  const memory = golden.tensor('in/memory');
  const [batch, length] = labels.shape;
  const specs: Inputs<Spec> = {
    parameters: decoderParameters<Spec>(config, ({ dtype, shape }) => ({ dtype, shape })),
    ids: { dtype: 'int32', shape: labels.shape },
    causal: { dtype: 'uint8', shape: [batch] },
    memory: { dtype: 'float32', shape: memory.shape },
    labels: { dtype: 'int32', shape: labels.shape },
    weights: { dtype: 'float32', shape: labels.shape },
  };
  const program = compile(
    'decoder',
    (inputs: Inputs<Tensor>) => {
      const { parameters } = inputs;
      const hidden = decoder(parameters, config, inputs, { checkpoint });
      const logits = ops.linear(
        ops.reshape(hidden, [batch * length, config.width]),
        parameters.head.weight,
        parameters.head.bias,
      );
      const loss = captionLoss(hidden, parameters.head, inputs);
      const by = { parameters, memory: inputs.memory };
      return { logits, loss, gradients: gradient(loss, by) };
    },
    specs,
  );
  const outputs = await program.run({
    parameters: decoderFromBigVision(config, tensorsOf(golden, config, 'param')),
    ids: Int32Array.from(golden.tensor(`out/${mode}/input_ids`).data),
    causal: causalOf(golden.tensor(`out/${mode}/self_mask`)),
    memory: Float32Array.from(memory.data),
    labels: Int32Array.from(labels.data),
    weights: Float32Array.from(labels.data, (label) => (label === 0 ? 0 : 1)),
  });
  const read = async (array: DeviceArray): Promise<Float32Array> =>
    (await array.read()) as Float32Array;
  const gradients = new Map<string, Float32Array>();
  for (const { path, leaf } of flatten(outputs.gradients.parameters)) {
    gradients.set(`decoder.${path}`, await read(leaf as DeviceArray));
  }
  const results = {
    logits: await read(outputs.logits),
    loss: await read(outputs.loss),
    memory: await read(outputs.gradients.memory),
    gradients,
  };
  for (const { leaf } of flatten(outputs)) (leaf as DeviceArray).dispose();
  program.dispose();
  return results;
}

describeGolden('bv_cappa_decoder', (golden) => {
  const check = (name: string, actual: ArrayLike<number>): void => {
    expectClose(name, actual, golden.tensor(name), within(golden.atol(name)));
  };

  test.each(modes)('%s: logits, loss and gradient of the memory', async (mode) => {
    const results = await run(golden, mode);
    check(`out/${mode}/logits`, results.logits);
    check(`out/${mode}/loss`, results.loss);
    check(`grad_wrt/${mode}/memory`, results.memory);
  });

  test.each(['ar', 'parallel'] as const)('%s: gradients of all parameters', async (mode) => {
    const { gradients } = await run(golden, mode);
    const config = configOf(golden);
    const expected = decoderFromBigVision(config, tensorsOf(golden, config, `grad/${mode}`));
    const names = new Map(
      bigVisionDecoderTensors(config).map(({ parameter, name }) => [parameter.path, name]),
    );
    expect([...gradients.keys()].sort()).toEqual([...names.keys()].sort());
    for (const { path, leaf } of flatten(expected)) {
      const name = `grad/${mode}/${names.get(`decoder.${path}`) ?? ''}`;
      const data = Float64Array.from(leaf as Float32Array);
      const actual = gradients.get(`decoder.${path}`) ?? [];
      expectClose(name, actual, { shape: [data.length], data }, within(golden.atol(name)));
    }
  });

  test('checkpoints change no bit', async () => {
    expect(await run(golden, 'mixed', true)).toEqual(await run(golden, 'mixed'));
  });
});
