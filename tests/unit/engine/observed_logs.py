# ruff: noqa: E501 - a log line is as long as it is
"""Excerpts of real llama-server logs (b11434, `-lv 4`), written down as they were."""

#: A small MoE with all experts in RAM beside the virtual GPU, the cache on; the second VGPU0 compute buffer is
#: the cache device's own.
HOT = """\
0.00.005.703 I load_backend: loaded HOT backend from /x/libggml-hot.so
0.00.094.653 I llama_prepare_model_devices: using device VGPU0 (virtual GPU (computes on the CPU)) (unknown id) - 100 MiB free
0.00.286.081 I load_tensors: loading model tensors, this can take a while... (load_mode = none)
0.00.387.246 I load_tensors: offloaded 5/5 layers to GPU
0.00.387.250 I load_tensors:          CPU model buffer size =    87.69 MiB
0.00.387.251 I load_tensors:        VGPU0 model buffer size =    23.53 MiB
0.00.596.939 I llama_context: constructing llama_context
0.00.597.751 I ggml_hot: device ready: K=8 interval=60 bypass=1 cache device=VGPU0
0.00.597.978 I llama_context:        CPU  output buffer size =     0.58 MiB
0.00.598.055 I llama_kv_cache:      VGPU0 KV buffer size =     4.00 MiB
0.00.598.169 I sched_reserve: reserving ...
0.00.599.278 I sched_reserve:      VGPU0 compute buffer size =    11.01 MiB
0.00.599.292 I sched_reserve:      VGPU0 compute buffer size =     0.02 MiB
0.00.599.292 I sched_reserve:        CPU compute buffer size =    14.02 MiB
0.00.605.408 I ggml_hot: cache: 1 layers x 8 slots, 0.8 MiB on VGPU0
0.00.610.166 I srv  llama_server: model loaded
0.00.610.181 I srv  llama_server: listening on http://127.0.0.1:18099
"""

#: fit with too little room for all experts: one layer's experts fit, of the next only a part.
FIT_PARTLY = """\
0.00.009.706 I cmn  common_init_: fitting params to device memory ...
0.00.009.787 I common_params_fit_impl: getting device memory data for initial parameters:
0.00.432.539 I common_params_fit_impl: projected to use 56 MiB of device memory vs. 48 MiB of free device memory
0.00.432.563 I common_params_fit_impl: cannot meet free memory target of 2 MiB, need to reduce device memory by 10 MiB
0.00.432.564 I common_params_fit_impl: context size set by user to 1024 -> no change
0.00.747.799 I common_params_fit_impl: with only dense weights in device memory there is a total surplus of 7 MiB
0.00.747.829 I common_params_fit_impl: id=0, target=46 MiB
0.01.334.666 I common_params_fit_impl:   - VGPU0 (virtual GPU (computes on the CPU)):  5 layers,     45 MiB used,      2 MiB free
0.01.952.104 I common_params_fit_impl: set ngl_per_device_high[0].(n_layer, n_part)=(5, 3), id_dense_start_high=0
0.01.952.105 I common_params_fit_impl: trying to fit one extra layer with overflow_type=LAYER_FRACTION_UP
0.02.558.831 I common_params_fit_impl: set ngl_per_device[0].(n_layer, n_part, overflow_type)=(5, 4, ATTN), id_dense_start=0
0.02.558.832 I common_params_fit_impl:   - VGPU0 (virtual GPU (computes on the CPU)):  5 layers ( 4 overflowing),     45 MiB used,      2 MiB free
0.02.558.836 I common_fit_params: successfully fit params to free device memory
0.02.558.840 I common_fit_params: fitting params to free memory took 2.55 seconds
0.02.601.210 I llama_prepare_model_devices: using device VGPU0 (virtual GPU (computes on the CPU)) (unknown id) - 48 MiB free
0.02.800.503 I load_tensors: offloaded 5/5 layers to GPU
0.02.800.504 I load_tensors:          CPU model buffer size =    84.34 MiB
0.02.800.505 I load_tensors:        VGPU0 model buffer size =    26.88 MiB
"""

#: fit where not even the dense part fits: whole layers stay on the CPU.
FIT_TIGHT = """\
0.00.402.511 I common_params_fit_impl: projected to use 56 MiB of device memory vs. 30 MiB of free device memory
0.00.402.584 I common_params_fit_impl: cannot meet free memory target of 2 MiB, need to reduce device memory by 28 MiB
0.00.697.859 I common_params_fit_impl: with only dense weights in device memory there is still a total deficit of 10 MiB
0.02.402.043 I common_params_fit_impl:   - VGPU0 (virtual GPU (computes on the CPU)):  1 layers,     21 MiB used,      8 MiB free
0.02.402.059 I common_fit_params: successfully fit params to free device memory
0.02.455.260 I llama_prepare_model_devices: using device VGPU0 (virtual GPU (computes on the CPU)) (unknown id) - 30 MiB free
0.02.702.754 I load_tensors: offloaded 1/5 layers to GPU
0.02.702.780 I load_tensors:        VGPU0 model buffer size =    20.87 MiB
"""

#: fit with room for everything.
FIT_ALL = """\
0.00.412.096 I common_params_fit_impl: projected to use 56 MiB of device memory vs. 400 MiB of free device memory
0.00.412.157 I common_params_fit_impl: will leave 343 >= 2 MiB of free device memory, no changes needed
0.00.412.169 I common_fit_params: successfully fit params to free device memory
0.00.453.231 I llama_prepare_model_devices: using device VGPU0 (virtual GPU (computes on the CPU)) (unknown id) - 400 MiB free
0.00.541.868 I load_tensors: offloaded 5/5 layers to GPU
0.00.541.871 I load_tensors:        VGPU0 model buffer size =    37.03 MiB
"""

#: fit that was also given -ngl, so that it gave up (the server then runs with defaults).
FIT_GAVE_UP = """\
0.00.402.511 I common_params_fit_impl: projected to use 56 MiB of device memory vs. 30 MiB of free device memory
0.00.357.500 W common_fit_params: failed to fit params to free device memory: n_gpu_layers already set by user to 99, abort
0.00.357.510 I common_fit_params: fitting params to free memory took 0.35 seconds
0.02.455.260 I llama_prepare_model_devices: using device VGPU0 (virtual GPU (computes on the CPU)) (unknown id) - 30 MiB free
0.02.702.754 I load_tensors: offloaded 5/5 layers to GPU
"""

VIRTUAL_OUT_OF_MEMORY = """\
0.00.409.062 I load_tensors: loading model tensors, this can take a while... (load_mode = none)
0.00.410.218 E ggml_hot: virtual GPU out of memory: 23 MiB asked, 0 of 20 MiB used
0.00.410.257 E ggml_backend_buft_alloc_buffer_n_default: failed to allocate VGPU0 buffer of size 24675328
0.00.468.601 E llama_model_load: error loading model: unable to allocate VGPU0 buffer
0.00.468.672 E llama_model_load_from_file_impl: failed to load model
0.00.468.693 E cmn  common_init_: failed to load model 'tiny.gguf'
0.00.469.208 E srv  llama_server: exiting due to model loading error
"""

HOST_OUT_OF_MEMORY = """\
0.00.413.240 E ggml_aligned_malloc: insufficient memory (attempted to allocate 1954.00 MB)
0.00.413.259 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 2048917504
0.00.413.260 E ggml_backend_buft_alloc_buffer_n_default: failed to allocate CPU buffer of size 2048917504
0.00.413.734 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
0.00.413.753 E cmn  common_init_: failed to create context with model 'tiny.gguf'
0.00.414.062 E srv  llama_server: exiting due to model loading error
"""

TRUNCATED_MODEL = """\
0.00.051.845 E llama_model_load: error loading model: tensor 'token_embd.weight' data is not within the file bounds, model is corrupted or incomplete
0.00.051.897 E llama_model_load_from_file_impl: failed to load model
0.00.051.905 E cmn  common_init_: failed to load model 'trunc.gguf'
0.00.051.921 I srv    operator(): operator(): cleaning up before exit...
0.00.052.548 E srv  llama_server: exiting due to model loading error
"""

LIBRARY_NOT_LOADED = """\
0.00.003.486 I load_backend: loaded CPU backend from /x/libggml-cpu.so
0.00.003.810 E load_backend: failed to load /nope.so: /nope.so: cannot open shared object file: No such file or directory
0.00.286.474 I load_tensors:          CPU model buffer size =   111.22 MiB
"""

#: Composed from the format strings of b11434's source, for machines that were not at hand.
CUDA_LOADED = """\
0.00.300.000 I llama_prepare_model_devices: using device CUDA0 (NVIDIA H100 80GB HBM3) (0000:61:00.0) - 80456 MiB free
0.00.310.000 I load_tensors: loading model tensors, this can take a while... (load_mode = none)
0.01.000.000 I load_tensors: offloaded 49/49 layers to GPU
0.01.000.001 I load_tensors:        CUDA0 model buffer size =  1234.50 MiB
0.01.000.002 I load_tensors:    CUDA_Host model buffer size = 14000.25 MiB
0.01.000.003 I load_tensors:          CPU model buffer size =   166.92 MiB
0.05.000.000 I llama_kv_cache:      CUDA0 KV buffer size =   384.00 MiB
0.05.000.001 I llama_kv_cache:      CUDA0 KV buffer size =    16.00 MiB
0.05.000.002 I llama_memory_recurrent:      CUDA0 RS buffer size =     2.00 MiB
0.05.100.000 I sched_reserve: reserving ...
0.05.200.000 I sched_reserve:      CUDA0 compute buffer size =   900.00 MiB
0.05.300.000 I sched_reserve: reserving ...
0.05.400.000 I sched_reserve:      CUDA0 compute buffer size =   300.00 MiB
0.05.400.001 I sched_reserve:  CUDA_Host compute buffer size =    20.00 MiB
"""
CUDA_OUT_OF_MEMORY = """\
0.01.000.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory
0.01.000.001 E ggml_backend_buft_alloc_buffer_n_default: failed to allocate CUDA0 buffer of size 9437184000
0.01.000.002 E llama_model_load: error loading model: unable to allocate CUDA0 buffer
0.01.100.000 E srv  llama_server: exiting due to model loading error
"""
CUDA_POOL_OUT_OF_MEMORY = """\
0.09.000.000 I slot launch_slot_: id  0 | task 0 | processing task, is_child = 0
0.09.100.000 E CUDA error: out of memory
0.09.100.001 E   current device: 0, in function alloc at /src/ggml/src/ggml-cuda/ggml-cuda.cu:537
0.09.100.002 E   cuMemCreate(&handle, reserve_size, &prop, 0)
/src/ggml/src/ggml-cuda/ggml-cuda.cu:109: CUDA error
"""
CUDA_ILLEGAL_ACCESS = """\
0.09.100.000 E CUDA error: an illegal memory access was encountered
0.09.100.001 E   current device: 0, in function ggml_backend_cuda_synchronize at /src/ggml/src/ggml-cuda/ggml-cuda.cu:2900
"""
