import { SiglipError } from '../lib/errors';

test('an error carries its code, its message and its cause', () => {
  const cause = new Error('below');
  const error = new SiglipError('ERR_SHAPE', 'f: x must be [2], got [3]', { cause });
  expect(error).toBeInstanceOf(Error);
  expect(error).toMatchObject({ name: 'SiglipError', code: 'ERR_SHAPE', cause });
  expect(String(error)).toBe('SiglipError: f: x must be [2], got [3]');
});
