// Joint selection of examples with given noise: scores, what is drawn and in which order.
import type { Spec, Tensor } from '../../lib/graph';
import { compile } from '../../lib/graph';
import { jointSelection } from '../../lib/loss';
import { scoreWeights } from '../../lib/ops';
import type { NdArray } from '../reference/nd_array';
import { describeGolden } from './golden';

const names = [
  'learner_image',
  'learner_text',
  'learner_t',
  'learner_b',
  'reference_image',
  'reference_text',
  'reference_t',
  'reference_b',
] as const;

const weightsOf = {
  learnability: scoreWeights.learnability,
  easy_reference: scoreWeights.easyReference,
  hard_learner: scoreWeights.hardLearner,
} as const;

describeGolden('jest_selection', (golden) => {
  const runs = golden.json.runs as readonly { readonly name: string }[];
  const { batch } = golden.json.config as { readonly batch: number };

  test.each(runs.map(({ name }) => [name]))('%s', async (name) => {
    const [, chunkWord, kind, gainWord] = /^chunks(\d+)_(.+)_gain(\d+)$/.exec(name) ?? [];
    const chunks = Number(chunkWord);
    const noise = golden.tensor(`in/gumbel_${chunkWord}`);
    const N = noise.shape[1];
    const inputs = names.map((input) => golden.tensor(`in/${input}`));
    const float32 = ({ shape }: NdArray): Spec => ({ dtype: 'float32', shape });
    const specs: Spec[] = [
      { dtype: 'uint8', shape: [N] },
      { dtype: 'int32', shape: [4] },
      ...inputs.map(float32),
      ...Array.from({ length: chunks }, (): Spec => ({ dtype: 'float32', shape: [N] })),
    ];
    const program = compile(
      'select',
      (tensors: readonly Tensor[]) => {
        const [taken, draw, ...rest] = tensors;
        const [images, texts, logitScale, logitBias, ...of] = rest;
        return jointSelection(
          { images, texts, logitScale, logitBias },
          { images: of[0], texts: of[1], logitScale: of[2], logitBias: of[3] },
          taken,
          draw,
          {
            batch,
            chunks,
            gain: Number(gainWord),
            weights: weightsOf[kind as keyof typeof weightsOf],
            noise: of.slice(4),
          },
        );
      },
      specs,
    );
    const selection = await program.run([
      new Uint8Array(N),
      new Int32Array(4),
      ...inputs.map(({ data }) => Float32Array.from(data)),
      ...Array.from({ length: chunks }, (_, chunk) =>
        Float32Array.from(noise.data.subarray(chunk * N, (chunk + 1) * N)),
      ),
    ]);
    const indices: number[] = [];
    const wantedScores = golden.tensor(`out/${name}/conditional_scores`);
    for (let chunk = 0; chunk < chunks; chunk++) {
      const scores = await selection.scores[chunk].read();
      const before = new Set(indices);
      for (let i = 0; i < N; i++) {
        if (before.has(i)) continue;
        expect(Math.abs(scores[i] - wantedScores.data[chunk * N + i])).toBeLessThan(1e-4);
      }
      indices.push(...(await selection.chunks[chunk].read()));
    }
    expect(indices).toEqual(Array.from(golden.tensor(`out/${name}/indices`).data));
    const taken = await selection.taken.read();
    expect(Array.from(taken)).toEqual(
      Array.from({ length: N }, (_, i) => (indices.includes(i) ? 1 : 0)),
    );
    for (const array of [...selection.scores, ...selection.chunks, selection.taken])
      array.dispose();
    program.dispose();
  });
});
