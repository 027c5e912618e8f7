// One learned token in the place of masked ones.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** x (B, T, D), mask (B, T), token (D) -> (B, T, D). */
export function maskTokens(x: NdArray, mask: NdArray, token: NdArray): NdArray {
  const D = token.data.length;
  return {
    shape: x.shape,
    data: x.data.map((value, i) => (mask.data[Math.floor(i / D)] ? token.data[i % D] : value)),
  };
}

/** dx is dy where nothing is masked; dtoken the sum of dy over what is. */
export function maskTokensBackward(dy: NdArray, mask: NdArray): { dx: NdArray; dtoken: NdArray } {
  const D = dy.shape[2];
  const dx = zeros(dy.shape);
  const dtoken = zeros([D]);
  dy.data.forEach((value, i) => {
    if (mask.data[Math.floor(i / D)]) dtoken.data[i % D] += value;
    else dx.data[i] = value;
  });
  return { dx, dtoken };
}
