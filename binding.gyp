# The addon by node-gyp, where there is no CMake. What is compiled, and how, stands in
# native/sources.json, which CMakeLists.txt reads too.
{
  'variables': {
    'runtime': [
      '<!@(node -p "require(\'./native/sources.json\').runtime.map((x) => \'native/runtime/\' + x + \'.cc\').join(\' \')")',
      '<!@(node -p "require(\'./native/sources.json\').image.map((x) => \'native/image/\' + x + \'.cc\').join(\' \')")',
      '<!@(node -p "require(\'./native/sources.json\').comm.map((x) => \'native/comm/\' + x + \'.cc\').join(\' \')")',
      '<!@(node -p "require(\'./native/sources.json\').binding.map((x) => \'native/binding/\' + x + \'.cc\').join(\' \')")',
    ],
    'kernels': [
      '<!@(node -p "require(\'./native/sources.json\').cpu.map((x) => \'native/cpu/\' + x + \'.cc\').join(\' \')")',
      '<!@(node -p "require(\'./native/sources.json\').ops.map((x) => \'native/ops/\' + x + \'/cpu.cc\').join(\' \')")',
    ],
  },
  'target_defaults': {
    'include_dirs': ['<!@(node -p "require(\'./native/sources.json\').include.join(\' \')")', '<!(node -p "require(\'node-addon-api\').include_dir")'],
    'defines': ['<!@(node -p "require(\'./native/sources.json\').defines.join(\' \')")'],
    # Node's defaults, which ours replace.
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
    'cflags!': ['-O3', '-Wno-unused-parameter'],
    'cflags_cc': ['<!@(node -p "require(\'./native/sources.json\').flags.join(\' \')")'],
    'xcode_settings': {
      'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
      'GCC_ENABLE_CPP_RTTI': 'YES',
      'OTHER_CPLUSPLUSFLAGS': ['<!@(node -p "require(\'./native/sources.json\').flags.join(\' \')")'],
    },
  },
  'targets': [
    {
      'target_name': 'kernels_generic',
      'type': 'static_library',
      'sources': ['<@(kernels)'],
      'defines': ['<!@(node -p "require(\'./native/sources.json\').isa.generic.defines.join(\' \')")'],
    },
    {
      'target_name': 'siglip2',
      'sources': ['<@(runtime)'],
      # Generic first: see native/cpu/isa.h on the order of linking.
      'dependencies': ['kernels_generic'],
      'conditions': [
        ['target_arch == "x64"', {'dependencies': ['kernels_avx2', 'kernels_avx512']}],
        ['OS == "linux"', {'ldflags': ['-static-libstdc++', '-static-libgcc', '-Wl,--version-script=<(module_root_dir)/native/binding/exports.map']}],
      ],
    },
  ],
  'conditions': [
    ['target_arch == "x64"', {
      'targets': [
        {
          'target_name': 'kernels_avx2',
          'type': 'static_library',
          'sources': ['<@(kernels)'],
          'defines': ['<!@(node -p "require(\'./native/sources.json\').isa.avx2.defines.join(\' \')")'],
          'cflags_cc': ['<!@(node -p "require(\'./native/sources.json\').isa.avx2.flags.join(\' \')")'],
          'xcode_settings': {'OTHER_CPLUSPLUSFLAGS': ['<!@(node -p "require(\'./native/sources.json\').isa.avx2.flags.join(\' \')")']},
        },
        {
          'target_name': 'kernels_avx512',
          'type': 'static_library',
          'sources': ['<@(kernels)'],
          'defines': ['<!@(node -p "require(\'./native/sources.json\').isa.avx512.defines.join(\' \')")'],
          'cflags_cc': ['<!@(node -p "require(\'./native/sources.json\').isa.avx512.flags.join(\' \')")'],
          'xcode_settings': {'OTHER_CPLUSPLUSFLAGS': ['<!@(node -p "require(\'./native/sources.json\').isa.avx512.flags.join(\' \')")']},
        },
      ],
    }],
  ],
}
