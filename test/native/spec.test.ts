import { bfloat16, bytesOf, dtypeCode, elementsOf, float32, int32, uint8 } from '../../lib/native/spec';

test('sizes', () => {
  expect(elementsOf([2, 3, 4])).toBe(24);
  expect(bytesOf(float32(2, 3))).toBe(24);
  expect(bytesOf(int32(5))).toBe(20);
  expect(bytesOf(uint8(2, 2))).toBe(4);
  expect(bytesOf(bfloat16(2, 3))).toBe(12);
});

test('specs', () => {
  expect(float32(2, 3)).toEqual({ dtype: 'float32', shape: [2, 3] });
  expect(int32(1)).toEqual({ dtype: 'int32', shape: [1] });
  expect(uint8()).toEqual({ dtype: 'uint8', shape: [] });
  expect(bfloat16(4)).toEqual({ dtype: 'bfloat16', shape: [4] });
});

test('the numbers of the dtypes are those of native/runtime/view.h', () => {
  const dtypes = ['float32', 'int32', 'uint8', 'bfloat16'] as const;
  expect(dtypes.map(dtypeCode)).toEqual([0, 1, 2, 3]);
});
