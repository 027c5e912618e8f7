// float32 rounded to bfloat16, its upper half.
const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The nearest bfloat16, ties to even; NaN and infinities stay. */
export function toBfloat16(x: number): number {
  if (Number.isNaN(x)) return NaN;
  float[0] = x;
  const odd = (bits[0] >>> 16) & 1;
  bits[0] = ((bits[0] + 0x7fff + odd) & 0xffff0000) >>> 0;
  return float[0];
}
