// y[m] = table[ids[m]].
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** table (V, D), ids (…) -> (…, D). */
export function embedding(table: NdArray, ids: NdArray): NdArray {
  const D = table.shape[1];
  const y = zeros([...ids.shape, D]);
  ids.data.forEach((id, m) => {
    for (let d = 0; d < D; d++) y.data[m * D + d] = table.data[id * D + d];
  });
  return y;
}

/** dtable[v] = Σ_{m: ids[m] = v} dy[m]. */
export function embeddingBackward(dy: NdArray, ids: NdArray, table: NdArray): NdArray {
  const D = table.shape[1];
  const dtable = zeros(table.shape);
  ids.data.forEach((id, m) => {
    for (let d = 0; d < D; d++) dtable.data[id * D + d] += dy.data[m * D + d];
  });
  return dtable;
}
