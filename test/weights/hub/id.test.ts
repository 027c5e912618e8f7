// Names of the hub.
import { parseHubName } from '../../../lib/weights/hub/id';
import { SiglipError } from '../../../lib';

const commit = '75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2';

test.each([
  ['google/siglip2-base-patch16-224', undefined, 'main'],
  ['google/siglip2-base-patch16-224', 'v1.0', 'v1.0'],
  [`google/siglip2-base-patch16-224@${commit}`, undefined, commit],
  ['google/siglip2-base-patch16-224@main', 'main', 'main'],
  ['google/siglip2-base-patch16-224', 'refs/pr/7', 'refs/pr/7'],
])('%s at %s is revision %s', (source, revision, expected) => {
  expect(parseHubName('load', source, revision)).toEqual({
    id: 'google/siglip2-base-patch16-224',
    revision: expected,
  });
});

test.each([
  ['../../etc', 'ERR_FILE', /\.\.\/\.\.\/etc, which does not exist/],
  ['./model', 'ERR_FILE', /does not exist/],
  ['/models/siglip2', 'ERR_FILE', /does not exist/],
  ['~/model', 'ERR_FILE', /does not exist/],
  ['C:\\models', 'ERR_FILE', /does not exist/],
  ['a/b/c', 'ERR_FILE', /does not exist/],
  ['', 'ERR_FILE', /an empty name/],
  ['siglip2-base', 'ERR_ARGUMENT', /did you mean google\/siglip2-base\?/],
  ['model', 'ERR_ARGUMENT', /owner\/name, got model/],
  ['google/..', 'ERR_ARGUMENT', /hub id/],
  ['google/a--b', 'ERR_ARGUMENT', /hub id/],
  ['google/a b', 'ERR_ARGUMENT', /hub id/],
  ['google/a?x=1', 'ERR_ARGUMENT', /hub id/],
  ['google/a%2fb', 'ERR_ARGUMENT', /hub id/],
  ['google/a\0b', 'ERR_ARGUMENT', /hub id/],
  ['google/.git', 'ERR_ARGUMENT', /hub id/],
  ['google/model@main@main', 'ERR_ARGUMENT', /hub id/],
  ['google/model@', 'ERR_ARGUMENT', /revision must be/],
  ['google/model@../../x', 'ERR_FILE', /does not exist/],
  ['google/model@..', 'ERR_ARGUMENT', /revision must be/],
])('%j is refused', (source, code, message) => {
  expect(failureOf(source)).toMatchObject({
    code,
    message: expect.stringMatching(message) as string,
  });
});

test.each(['../x', 'a//b', '/a', 'a/', 'a b', 'a.lock', 'x/../y', '-x', 'a:b', ''])(
  'revision %j is refused',
  (revision) => {
    expect(failureOf('google/model', revision)).toMatchObject({ code: 'ERR_ARGUMENT' });
  },
);

test('two revisions that differ are refused', () => {
  expect(failureOf('google/model@a', 'b').message).toMatch(/given once, got a in .* and b/);
});

function failureOf(source: string, revision?: string): SiglipError {
  try {
    parseHubName('load', source, revision);
  } catch (error) {
    if (error instanceof SiglipError) return error;
    throw error;
  }
  throw new Error(`${source} must be refused`);
}
