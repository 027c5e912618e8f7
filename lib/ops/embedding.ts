// Embedding lookup: rows of a table by int32 ids.
import type { Tensor } from '../graph';
import { expectRank, extent, op } from '../graph';
import { kernels } from '../native/kernels';

const embeddingForward = op<{ table: Tensor; ids: Tensor }, 'y', object>({
  name: 'embedding',
  infer: ({ table, ids }) => {
    const [, width = 0] = expectRank('embedding', 'table', table, ['V', 'D']);
    const shape = expectRank('embedding', 'ids', ids, ['…', 'T'], 'int32');
    return { y: { dtype: 'float32', shape: [...shape, width] } };
  },
  kernel: kernels.embeddingForward,
  precision: { narrow: ['y'], stored: ['table'] },
  gradient: ({ inputs: { table, ids }, gradients: { y: dy } }) =>
    dy === undefined
      ? {}
      : { table: embeddingBackward({ dy, ids }, { vocabulary: extent(table, 0) }).dtable },
});

const embeddingBackward = op<{ dy: Tensor; ids: Tensor }, 'dtable', { vocabulary: number }>({
  name: 'embedding_backward',
  infer: ({ dy }, { vocabulary }) => ({
    dtable: { dtype: 'float32', shape: [vocabulary, extent(dy, -1)] },
  }),
  kernel: kernels.embeddingBackward,
  precision: { any: ['dy'] },
  gradient: 'notDifferentiable',
});

/**
 * table[ids].
 *
 * @param table - (V, D) float32.
 * @param ids - (…) int32, each in [0, V); another id makes the run fail with ERR_ARGUMENT.
 * @returns (…, D).
 * @throws ERR_SHAPE, ERR_DTYPE.
 */
export function embedding(table: Tensor, ids: Tensor): Tensor {
  return embeddingForward({ table, ids }, {}).y;
}
