// Options and environment variables, by the rules of huggingface_hub.
import { mkdirSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { hubCacheDir, hubEnvironment } from '../../../lib/weights/hub/environment';
import { temporaryFolder } from '../files';
import { withoutHubVariables } from './hub_models';

withoutHubVariables();
const folder = temporaryFolder();

// The token file of whoever runs the tests stays out of them.
beforeEach(() => {
  process.env['HF_HOME'] = folder();
});

describe('cache', () => {
  test.each<[Record<string, string>, string]>([
    [{ HF_HUB_CACHE: '/a', HF_HOME: '/b', XDG_CACHE_HOME: '/c' }, '/a'],
    [{ HF_HOME: '/b', XDG_CACHE_HOME: '/c' }, '/b/hub'],
    [{ HF_HOME: '', XDG_CACHE_HOME: '/c' }, '/c/huggingface/hub'],
    [{ HF_HOME: '' }, join(homedir(), '.cache/huggingface/hub')],
    [{ HF_HUB_CACHE: '~/x' }, join(homedir(), 'x')],
  ])('%j', (variables, expected) => {
    Object.assign(process.env, variables);
    expect(hubCacheDir()).toBe(expected);
    expect(hubCacheDir('/option')).toBe('/option');
  });
});

describe('token', () => {
  const token = (option?: string | false): string | undefined =>
    hubEnvironment('load', { token: option }).token?.value;

  test('option before variable before file', () => {
    expect(token()).toBeUndefined();
    writeFileSync(join(folder(), 'token'), 'hf_home\n');
    expect(token()).toBe('hf_home');
    mkdirSync(join(folder(), 'other'));
    writeFileSync(join(folder(), 'other', 'token'), 'hf_path');
    process.env['HF_TOKEN_PATH'] = join(folder(), 'other', 'token');
    expect(token()).toBe('hf_path');
    process.env['HF_TOKEN'] = 'hf_variable';
    expect(token()).toBe('hf_variable');
    expect(token('hf_option')).toBe('hf_option');
    expect(token(false)).toBeUndefined();
    process.env['HF_HUB_DISABLE_IMPLICIT_TOKEN'] = '1';
    expect(token()).toBeUndefined();
  });

  test('one that would break a header is refused and not shown', () => {
    expect(() => token('hf_a\r\nX-Evil: 1')).toThrow(/token from the option token must be visible/);
    expect(() => token('hf_a\r\nX-Evil: 1')).not.toThrow(/Evil/);
  });
});

test('endpoint and offline', () => {
  expect(hubEnvironment('load').endpoint).toBe('https://huggingface.co');
  process.env['HF_ENDPOINT'] = 'https://mirror.example/hf//';
  expect(hubEnvironment('load').endpoint).toBe('https://mirror.example/hf');
  expect(hubEnvironment('load', { endpoint: 'http://a:1' }).endpoint).toBe('http://a:1');
  for (const endpoint of ['ftp://a', 'nonsense', 'https://user:word@a', 'https://a/?b']) {
    expect(() => hubEnvironment('load', { endpoint })).toThrow(/endpoint must be an http/);
  }
  expect(hubEnvironment('load').offline).toBeUndefined();
  process.env['TRANSFORMERS_OFFLINE'] = 'true';
  expect(hubEnvironment('load').offline).toBe('TRANSFORMERS_OFFLINE is set');
  process.env['HF_HUB_OFFLINE'] = '1';
  expect(hubEnvironment('load').offline).toBe('HF_HUB_OFFLINE is set');
  expect(hubEnvironment('load', { offline: false }).offline).toBeUndefined();
});
