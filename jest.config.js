// One worker per core, so that the two cores of a small machine stay busy; the native thread pool is
// narrowed to match (results do not depend on the number of threads).
'use strict';

/** @type {import('jest').Config} */
module.exports = {
  rootDir: __dirname,
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  // Packages that are ES modules only, which Jest cannot require as they are.
  transformIgnorePatterns: ['/node_modules/(?!(?:hyparquet(?:-writer|-compressors)?|hysnappy)/)'],
  transform: {
    '/node_modules/(?:hyparquet|hysnappy).*\\.js$': [
      '@swc/jest',
      { jsc: { parser: { syntax: 'ecmascript' }, target: 'es2022' }, module: { type: 'commonjs' } },
    ],
    '^.+\\.ts$': [
      '@swc/jest',
      {
        jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
        module: { type: 'commonjs' },
        sourceMaps: 'inline',
      },
    ],
  },
  maxWorkers: 2,
  testTimeout: 120_000,
  reporters: ['default', '<rootDir>/test/reporter.js'],
};
