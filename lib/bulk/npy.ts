// The header of NumPy's .npy files, format 1.0:
//   93 "NUMPY" 1 0, uint16 length (little-endian), a Python dict in ASCII, spaces, a newline
// padded so that the data begin at a multiple of 64 bytes.
import type { VectorDtype } from './part';

const MAGIC = Buffer.from('\x93NUMPY\x01\x00', 'latin1');
const ALIGNMENT = 64;

/** The header of a C-ordered array. */
export function npyHeader(dtype: VectorDtype, shape: readonly number[]): Buffer {
  const descr = dtype === 'float16' ? '<f2' : '<f4';
  const extents = shape.length === 1 ? `${String(shape[0])},` : shape.join(', ');
  const dict = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${extents}), }`;
  const fixed = MAGIC.length + 2;
  const total = Math.ceil((fixed + dict.length + 1) / ALIGNMENT) * ALIGNMENT;
  const header = Buffer.alloc(total, ' ');
  MAGIC.copy(header);
  header.writeUInt16LE(total - fixed, MAGIC.length);
  header.write(dict, fixed, 'latin1');
  header[total - 1] = 0x0a;
  return header;
}
