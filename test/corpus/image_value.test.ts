import { imageOf } from '../../lib/corpus/image_value';

const options = { root: '/data/set', strings: 'path' } as const;

test.each([
  ['a path', 'a/b.jpg', { path: '/data/set/a/b.jpg' }],
  ['a path that comes back', 'a/../b.jpg', { path: '/data/set/b.jpg' }],
  ['a name with dots', '..b.jpg', { path: '/data/set/..b.jpg' }],
  ['an absolute path below the root', '/data/set/c.jpg', { path: '/data/set/c.jpg' }],
  ['bytes', Uint8Array.of(1, 2), { bytes: Uint8Array.of(1, 2) }],
  ['a struct', { bytes: Uint8Array.of(3), path: 'x' }, { bytes: Uint8Array.of(3) }],
  ['a struct of a path alone', { bytes: null, path: 'x.png' }, { path: '/data/set/x.png' }],
  ['a struct from JSON', { bytes: 'AQI=' }, { bytes: Buffer.of(1, 2) }],
  ['a data URI', 'data:image/png;base64,AQI=', { bytes: Buffer.of(1, 2) }],
])('%s', (_, value, image) => {
  expect(imageOf(value, options)).toEqual({ image });
});

test('base64 where strings are said to be', () => {
  const base64 = { ...options, strings: 'base64' } as const;
  expect(imageOf('AQ\nI=', base64)).toEqual({ image: { bytes: Buffer.of(1, 2) } });
  expect(imageOf('not base64!', base64)).toHaveProperty('failure');
});

// The rule: data must not choose which files of this machine are read.
test.each([
  '../outside.jpg',
  'a/../../outside.jpg',
  '..',
  '/etc/passwd',
  '/data/settings/x.jpg',
  '/data',
])('%s leaves the root and is refused', (path) => {
  const result = imageOf(path, options);
  expect(result).toMatchObject({ failure: { code: 'ERR_DATA' } });
  expect(JSON.stringify(result)).toMatch(/must lie below \/data\/set/);
});

test('every path is open below the root of all', () => {
  expect(imageOf('/etc/x.jpg', { root: '/', strings: 'path' })).toEqual({
    image: { path: '/etc/x.jpg' },
  });
});

test.each([
  ['an address', 'https://example.org/a.jpg', /fetch it first/],
  ['a file URL, which is a name below the root', 'file:///etc/passwd', /address/],
  ['an empty path', '', /empty/],
  ['a zero byte', 'a\0b', /zero byte/],
  ['a data URI without base64', 'data:text/plain,hello', /base64/],
  ['a number', 7, /got number/],
  ['nothing', null, /got nothing/],
  ['an object without either', { url: 'x' }, /got object/],
  ['a struct with nothing in it', { bytes: null, path: null }, /got object/],
])('%s is refused', (_, value, message) => {
  expect(JSON.stringify(imageOf(value, options))).toMatch(message);
});
