// The virtual GPUs: memory caps, copies, and above all that the asynchronous ones find out code that does not wait.
//
//   test-vgpu <folder of libggml-cpu>
//
// Where order matters nothing is left to luck: a gate, which is an operation that blocks its queue until it is opened,
// stands in the queue while the test looks at what has not happened yet.
#include "../src/handles.h"
#include "../src/vgpu.h"
#include "../src/vgpu_backend.h"
#include "check.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

using namespace hot;

// devices: one set for all tests of a kind, as they live as long as the process

static const char * registry_name(ggml_backend_reg_t) {
    return "test";
}

static std::vector<ggml_backend_dev_t> make_devices(const vgpu_options & options) {
    static ggml_backend_reg reg = {GGML_BACKEND_API_VERSION, {registry_name, nullptr, nullptr, nullptr}, nullptr};
    return make_vgpu_devices(&reg, options);
}

constexpr size_t KIB = 1024;

static const std::vector<ggml_backend_dev_t> & plain_gpus() {
    static const auto devices = make_devices({{64 * KIB, 128 * KIB}, false, 0, 0});
    return devices;
}

static const std::vector<ggml_backend_dev_t> & async_gpus() {
    static const auto devices = make_devices({{64 * KIB, 64 * KIB}, true, 0, 0});
    return devices;
}

static const std::vector<ggml_backend_dev_t> & slow_gpus() {
    static const auto devices = make_devices({{64 * KIB, 64 * KIB}, true, 500, 0});
    return devices;
}

// One thread: more would come from a library that thread sanitizers do not see into.
static backend_ptr new_stream(ggml_backend_dev_t dev) {
    backend_ptr backend(ggml_backend_dev_init(dev, nullptr));
    set_vgpu_threads(backend.get(), 1);
    return backend;
}

// memory of a device with a few tensors of four floats in it

struct vectors {
    context_ptr ctx = make_context(64);
    buffer_ptr  buffer;

    explicit vectors(ggml_backend_dev_t dev, int n) : vectors(ggml_backend_dev_buffer_type(dev), n) {}
    vectors(ggml_backend_buffer_type_t buft, int n) {
        for (int i = 0; i < n; i++) {
            ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 4);
        }
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
        ggml_backend_buffer_clear(buffer.get(), 0);
    }

    ggml_tensor * operator[](int i) const {
        ggml_tensor * t = ggml_get_first_tensor(ctx.get());
        while (i-- > 0) {
            t = ggml_get_next_tensor(ctx.get(), t);
        }
        return t;
    }
};

static std::vector<float> four(float value) {
    return std::vector<float>(4, value);
}

static void set(ggml_tensor * t, float value) {
    const auto data = four(value);
    ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
}

// All four are the same in these tests; a vector of mixed values is nan.
static float get(const ggml_tensor * t) {
    std::vector<float> data(4);
    ggml_backend_tensor_get(t, data.data(), 0, ggml_nbytes(t));
    return data == four(data[0]) ? data[0] : NAN;
}

static void set_async(const backend_ptr & stream, ggml_tensor * t, const std::vector<float> & data) {
    ggml_backend_tensor_set_async(stream.get(), t, data.data(), 0, ggml_nbytes(t));
}

// Graphs of one operation. Its description is gone when the function returns, as in llama.cpp.

static ggml_status run(const backend_ptr & stream, ggml_context * ctx, ggml_tensor * out) {
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, 8, false);
    ggml_build_forward_expand(graph, out);
    return ggml_backend_graph_compute_async(stream.get(), graph);
}

static void bind(ggml_tensor * result, const ggml_tensor * target) {
    result->buffer = target->buffer;
    result->data   = target->data;
}

static ggml_status add(const backend_ptr & stream, ggml_tensor * a, ggml_tensor * b, ggml_tensor * sum) {
    context_ptr ctx = make_context(8);
    ggml_tensor * out = ggml_add(ctx.get(), a, b);
    bind(out, sum);
    return run(stream, ctx.get(), out);
}

static ggml_status add_in_place(const backend_ptr & stream, ggml_tensor * sum, ggml_tensor * b) {
    context_ptr ctx = make_context(8);
    ggml_tensor * out = ggml_add_inplace(ctx.get(), sum, b);
    bind(out, sum);
    return run(stream, ctx.get(), out);
}

class gate {
  public:
    // Nothing queued later on the stream is done before open().
    void close(const backend_ptr & stream, ggml_tensor * any) {
        context_ptr ctx = make_context(8);
        ggml_tensor * out = ggml_map_custom1_inplace(ctx.get(), any, block, 1, this);
        bind(out, any);
        CHECK(run(stream, ctx.get(), out) == GGML_STATUS_SUCCESS, "gate");
    }
    void open() {
        std::lock_guard<std::mutex> lock(mutex_);
        open_ = true;
        changed_.notify_all();
    }

  private:
    static void block(ggml_tensor *, const ggml_tensor *, int, int, void * self) {
        gate & g = *(gate *) self;
        std::unique_lock<std::mutex> lock(g.mutex_);
        g.changed_.wait(lock, [&] { return g.open_; });
    }

    std::mutex              mutex_;
    std::condition_variable changed_;
    bool                    open_ = false;
};

// Opens a gate while the caller waits for something behind it; late enough that a wait that is none returns before.
class opener {
  public:
    explicit opener(gate & g) : thread_([&g] {
        pause();
        g.open();
    }) {}
    ~opener() { thread_.join(); }
    static void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }

  private:
    std::thread thread_;
};

// memory

static vgpu_stats memory_of(int gpu) {
    return vgpu_snapshot().at((size_t) gpu);
}

static void memory_is_capped_counted_and_given_back() {
    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(plain_gpus()[0]);
    buffer_ptr first(ggml_backend_buft_alloc_buffer(buft, 40 * KIB));
    CHECK(first != nullptr, "40 of 64 KiB");
    CHECK(ggml_backend_buft_alloc_buffer(buft, 24 * KIB + 1) == nullptr, "one byte too many");
    CHECK(ggml_backend_buft_alloc_buffer(buft, SIZE_MAX) == nullptr, "so much that a sum overflows");
    buffer_ptr second(ggml_backend_buft_alloc_buffer(buft, 24 * KIB));
    CHECK(second != nullptr, "just what is left");
    CHECK((uintptr_t) ggml_backend_buffer_get_base(second.get()) % 64 == 0, "alignment");
    CHECK(ggml_backend_buft_get_alignment(buft) == 64, "alignment");

    size_t free = 1, total = 0;
    ggml_backend_dev_memory(plain_gpus()[0], &free, &total);
    CHECK(free == 0 && total == 64 * KIB, "%zu of %zu free", free, total);
    second.reset();
    CHECK(memory_of(0).used == 40 * KIB && memory_of(0).peak == 64 * KIB, "used %zu", (size_t) memory_of(0).used);
    vgpu_reset_peak();
    CHECK(memory_of(0).peak == 40 * KIB, "peak %zu", (size_t) memory_of(0).peak);
    first.reset();
    CHECK(memory_of(0).used == 0 && memory_of(0).peak == 40 * KIB, "used %zu", (size_t) memory_of(0).used);
}

static void a_buffer_of_no_size_takes_nothing() {
    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(plain_gpus()[0]);
    buffer_ptr by_ggml(ggml_backend_buft_alloc_buffer(buft, 0));
    buffer_ptr by_us(buft->iface.alloc_buffer(buft, 0));
    CHECK(by_ggml && by_us, "allocated");
    ggml_backend_buffer_clear(by_us.get(), 1);
    CHECK(memory_of(0).used == 0, "used %zu", (size_t) memory_of(0).used);
}

static void each_gpu_has_its_own_name_memory_and_buffer_type() {
    const auto & gpus = plain_gpus();
    ggml_backend_buffer_type_t bufts[] = {ggml_backend_dev_buffer_type(gpus[0]), ggml_backend_dev_buffer_type(gpus[1])};
    CHECK(strcmp(ggml_backend_dev_name(gpus[0]), "VGPU0") == 0 && strcmp(ggml_backend_buft_name(bufts[0]), "VGPU0") == 0, "name");
    CHECK(strcmp(ggml_backend_dev_name(gpus[1]), "VGPU1") == 0 && strcmp(ggml_backend_buft_name(bufts[1]), "VGPU1") == 0, "name");
    buffer_ptr buffer(ggml_backend_buft_alloc_buffer(bufts[1], 100 * KIB));
    CHECK(buffer && memory_of(1).used == 100 * KIB && memory_of(1).total == 128 * KIB && memory_of(0).used == 0, "memory");
    for (int i = 0; i < 2; i++) {
        CHECK(ggml_backend_buft_get_device(bufts[i]) == gpus[(size_t) i], "device of %d", i);
        CHECK(!ggml_backend_buft_is_host(bufts[i]), "%d", i);
        CHECK(ggml_backend_dev_supports_buft(gpus[(size_t) i], bufts[i]), "own, %d", i);
        CHECK(!ggml_backend_dev_supports_buft(gpus[(size_t) i], bufts[1 - i]), "the other's, %d", i);
        CHECK(!ggml_backend_dev_supports_buft(gpus[(size_t) i], ggml_backend_cpu_buffer_type()), "the host's, %d", i);
    }
}

static void a_copy_of_a_buffer_type_is_the_same_memory() {
    const auto & gpus = plain_gpus();
    ggml_backend_buffer_type copy = *ggml_backend_dev_buffer_type(gpus[1]);
    CHECK(ggml_backend_dev_supports_buft(gpus[1], &copy), "the same GPU");
    CHECK(!ggml_backend_dev_supports_buft(gpus[0], &copy), "another GPU");
    buffer_ptr buffer(ggml_backend_buft_alloc_buffer(&copy, 10 * KIB));
    CHECK(memory_of(1).used == 10 * KIB, "used %zu", (size_t) memory_of(1).used);
    buffer.reset();
    CHECK(memory_of(1).used == 0, "used %zu", (size_t) memory_of(1).used);
}

static void data_goes_between_gpus_and_the_host() {
    vectors on_first(plain_gpus()[0], 1), on_second(plain_gpus()[1], 1), on_host(ggml_backend_cpu_buffer_type(), 2);
    set(on_host[0], 5);
    CHECK(ggml_backend_buffer_copy_tensor(on_host[0], on_first[0]), "host to GPU, by the buffer's own copy");
    CHECK(ggml_backend_buffer_copy_tensor(on_first[0], on_second[0]), "GPU to GPU, by the buffer's own copy");
    CHECK(get(on_second[0]) == 5, "%g", get(on_second[0]));
    ggml_backend_tensor_copy(on_second[0], on_host[1]);
    CHECK(get(on_host[1]) == 5, "%g", get(on_host[1]));

    float part[2] = {7, 7};
    ggml_backend_tensor_set(on_first[0], part, 2 * sizeof(float), sizeof(part));
    float all[4];
    ggml_backend_tensor_get(on_first[0], all, 0, sizeof(all));
    CHECK(all[1] == 5 && all[2] == 7 && all[3] == 7, "a part is set");
    ggml_backend_tensor_memset(on_first[0], 0, 0, 3 * sizeof(float));
    ggml_backend_tensor_get(on_first[0], all, 0, sizeof(all));
    CHECK(all[1] == 0 && all[2] == 0 && all[3] == 7, "a part is filled");
    ggml_backend_buffer_clear(on_first.buffer.get(), 0);
    CHECK(get(on_first[0]) == 0, "cleared");
}

static void a_synchronous_gpu_computes_and_has_no_events() {
    ggml_backend_dev_t dev = plain_gpus()[0];
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(dev, &props);
    CHECK(!props.caps.async && !props.caps.events && props.caps.host_buffer, "capabilities");
    CHECK(ggml_backend_event_new(dev) == nullptr, "event");
    CHECK(ggml_backend_dev_host_buffer_type(dev) == ggml_backend_cpu_buffer_type(), "pinned memory");
    const backend_ptr stream = new_stream(dev);
    CHECK(is_vgpu_backend(stream.get()), "a virtual GPU's");
    vectors v(dev, 3);
    set(v[0], 1);
    set(v[1], 2);
    CHECK(add(stream, v[0], v[1], v[2]) == GGML_STATUS_SUCCESS, "status");
    CHECK(get(v[2]) == 3, "%g", get(v[2]));
}

static void every_third_allocation_fails() {
    const auto gpus = make_devices({{64 * KIB, 64 * KIB}, false, 0, 3});
    std::vector<int> failed;
    for (int i = 0; i < 12; i++) {
        ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(gpus[(size_t) i % 2]);  // counted over both
        if (!buffer_ptr(ggml_backend_buft_alloc_buffer(buft, KIB))) {
            failed.push_back(i);
        }
    }
    CHECK(failed.size() == 4, "%zu of 12", failed.size());
    for (size_t i = 1; i < failed.size(); i++) {
        CHECK(failed[i] - failed[i - 1] == 3, "after %d the next is %d", failed[i - 1], failed[i]);
    }
}

// asynchronous

static void a_graph_sees_what_was_set_before_it() {
    ggml_backend_dev_t dev = async_gpus()[0];
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(dev, &props);
    CHECK(props.caps.async && props.caps.events && props.caps.host_buffer, "capabilities");
    vectors v(dev, 3);
    const auto one = four(1), two = four(2);
    auto result = four(0);
    const backend_ptr stream = new_stream(dev);
    set_async(stream, v[0], one);
    set_async(stream, v[1], two);
    CHECK(add(stream, v[0], v[1], v[2]) == GGML_STATUS_SUCCESS, "status");
    ggml_backend_tensor_get_async(stream.get(), v[2], result.data(), 0, ggml_nbytes(v[2]));
    ggml_backend_synchronize(stream.get());
    CHECK(result == four(3), "%g", result[0]);
}

static void a_blocking_read_does_not_wait_for_the_queue() {
    vectors v(async_gpus()[0], 2);
    const auto two = four(2);
    set(v[0], 1);
    gate g;
    const backend_ptr stream = new_stream(async_gpus()[0]);
    g.close(stream, v[1]);
    set_async(stream, v[0], two);
    CHECK(get(v[0]) == 1, "before the queue got there: %g", get(v[0]));
    g.open();
    ggml_backend_synchronize(stream.get());
    CHECK(get(v[0]) == 2, "after: %g", get(v[0]));
}

static void an_asynchronous_write_reads_its_source_late() {
    vectors v(async_gpus()[0], 2);
    auto source = four(1);
    gate g;
    const backend_ptr stream = new_stream(async_gpus()[0]);
    g.close(stream, v[1]);
    set_async(stream, v[0], source);
    std::fill(source.begin(), source.end(), 2.0f);  // too early: what such code does wrong becomes visible
    g.open();
    ggml_backend_synchronize(stream.get());
    CHECK(get(v[0]) == 2, "%g", get(v[0]));
}

static void an_asynchronous_read_writes_its_target_late() {
    vectors v(async_gpus()[0], 2);
    auto target = four(1);
    set(v[0], 2);
    gate g;
    const backend_ptr stream = new_stream(async_gpus()[0]);
    g.close(stream, v[1]);
    ggml_backend_tensor_get_async(stream.get(), v[0], target.data(), 0, ggml_nbytes(v[0]));
    CHECK(target == four(1), "%g", target[0]);
    g.open();
    ggml_backend_synchronize(stream.get());
    CHECK(target == four(2), "%g", target[0]);
}

static void synchronize_waits_for_all_that_is_queued() {
    vectors v(async_gpus()[0], 2);
    const auto one = four(1);
    gate g;
    const backend_ptr stream = new_stream(async_gpus()[0]);
    g.close(stream, v[1]);
    set_async(stream, v[0], one);
    const opener late(g);
    ggml_backend_synchronize(stream.get());
    CHECK(get(v[0]) == 1, "%g", get(v[0]));
}

static void freeing_a_backend_does_what_is_queued() {
    vectors v(async_gpus()[0], 2);
    const auto one = four(1);
    gate g;
    backend_ptr stream = new_stream(async_gpus()[0]);
    g.close(stream, v[1]);
    set_async(stream, v[0], one);
    const opener late(g);
    stream.reset();
    CHECK(get(v[0]) == 1, "%g", get(v[0]));
}

static void an_event_orders_two_streams() {
    vectors v(async_gpus()[0], 3);
    const auto one = four(1);
    gate g;
    const backend_ptr writer = new_stream(async_gpus()[0]), reader = new_stream(async_gpus()[0]);
    const event_ptr written(ggml_backend_event_new(async_gpus()[0]));
    g.close(writer, v[2]);
    set_async(writer, v[0], one);
    ggml_backend_event_record(written.get(), writer.get());
    ggml_backend_event_wait(reader.get(), written.get());
    CHECK(add(reader, v[0], v[0], v[1]) == GGML_STATUS_SUCCESS, "status");
    opener::pause();  // time to do it wrong
    g.open();
    ggml_backend_synchronize(reader.get());
    CHECK(get(v[1]) == 2, "%g", get(v[1]));
}

static void without_an_event_two_streams_are_not_ordered() {
    vectors v(async_gpus()[0], 3);
    const auto one = four(1);
    gate g;
    const backend_ptr writer = new_stream(async_gpus()[0]), reader = new_stream(async_gpus()[0]);
    g.close(writer, v[2]);
    set_async(writer, v[0], one);
    CHECK(add(reader, v[0], v[0], v[1]) == GGML_STATUS_SUCCESS, "status");
    ggml_backend_synchronize(reader.get());
    CHECK(get(v[1]) == 0, "%g", get(v[1]));
    g.open();
    ggml_backend_synchronize(writer.get());
}

static void the_host_can_wait_for_an_event() {
    vectors v(async_gpus()[0], 2);
    const auto one = four(1), two = four(2);
    gate first, second;
    const backend_ptr stream = new_stream(async_gpus()[0]);
    const event_ptr written(ggml_backend_event_new(async_gpus()[0]));
    ggml_backend_event_synchronize(written.get());  // never recorded: nothing to wait for
    first.close(stream, v[1]);
    set_async(stream, v[0], one);
    ggml_backend_event_record(written.get(), stream.get());
    second.close(stream, v[1]);
    set_async(stream, v[0], two);
    const opener late(first);
    ggml_backend_event_synchronize(written.get());
    CHECK(get(v[0]) == 1, "not less and not more than asked for: %g", get(v[0]));
    second.open();
    ggml_backend_synchronize(stream.get());
}

static void a_wait_is_for_the_record_made_before_it() {
    vectors v(async_gpus()[0], 2);
    const auto one = four(1);
    gate g;
    const backend_ptr writer = new_stream(async_gpus()[0]), reader = new_stream(async_gpus()[0]);
    event_ptr event(ggml_backend_event_new(async_gpus()[0]));
    ggml_backend_event_wait(reader.get(), event.get());  // never recorded
    ggml_backend_event_record(event.get(), writer.get());
    ggml_backend_event_wait(reader.get(), event.get());
    g.close(writer, v[1]);
    ggml_backend_event_record(event.get(), writer.get());
    ggml_backend_synchronize(reader.get());  // would never return if it meant the later record
    ggml_backend_event_wait(reader.get(), event.get());
    event.reset();  // its record lives on in the queue
    set_async(reader, v[0], one);
    CHECK(get(v[0]) == 0, "%g", get(v[0]));
    g.open();
    ggml_backend_synchronize(reader.get());
    CHECK(get(v[0]) == 1, "%g", get(v[0]));
}

static void a_queued_graph_outlives_its_descriptions() {
    ggml_backend_dev_t dev = async_gpus()[0];
    vectors v(dev, 3);
    set(v[0], 1);
    set(v[1], 2);
    gate g;
    const backend_ptr stream = new_stream(dev);
    g.close(stream, v[0]);
    std::vector<uint8_t> descriptions(16 * ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false));
    ggml_backend_buffer_t gone = (ggml_backend_buffer_t) 64;  // as if the buffer's description had been freed
    context_ptr ctx(ggml_init({descriptions.size(), descriptions.data(), true}));
    ggml_tensor * sources[2];
    for (int i = 0; i < 2; i++) {
        sources[i]         = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 4);
        sources[i]->data   = v[i]->data;
        sources[i]->buffer = gone;
    }
    ggml_tensor * view = ggml_view_1d(ctx.get(), sources[0], 4, 0);
    bind(view, sources[0]);
    ggml_tensor * product = ggml_mul_mat(ctx.get(), view, sources[1]);  // one number: the CPU asks what buffer it is from
    bind(product, v[2]);
    ggml_tensor * out = ggml_add_inplace(ctx.get(), sources[1], product);
    bind(out, sources[1]);
    CHECK(run(stream, ctx.get(), out) == GGML_STATUS_SUCCESS, "status");
    ctx.reset();
    std::fill(descriptions.begin(), descriptions.end(), (uint8_t) 0xff);
    g.open();
    ggml_backend_synchronize(stream.get());
    CHECK(get(v[1]) == 10, "%g", get(v[1]));
}

// The CPU fuses rms_norm and mul if nobody else uses the norm; what it finds out about that must not differ.
static void a_queued_graph_computes_the_same_bits() {
    const auto norm = [](ggml_backend_dev_t dev, bool used_twice) {
        context_ptr ctx = make_context(16);
        ggml_tensor * x   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 96, 3);
        ggml_tensor * w   = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 96);
        ggml_tensor * rms = ggml_rms_norm(ctx.get(), x, 1e-6f);
        ggml_tensor * out = ggml_mul(ctx.get(), rms, w);
        out = used_twice ? ggml_add(ctx.get(), out, rms) : out;
        ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), 16, false);
        ggml_build_forward_expand(graph, out);
        const buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(dev)));
        std::vector<float> data(96 * 3), result(96 * 3);
        for (size_t i = 0; i < data.size(); i++) {
            data[i] = std::sin((float) i);
        }
        ggml_backend_buffer_clear(buffer.get(), 0x7f);
        ggml_backend_tensor_set(x, data.data(), 0, ggml_nbytes(x));
        ggml_backend_tensor_set(w, data.data(), 0, ggml_nbytes(w));
        const backend_ptr stream = new_stream(dev);
        CHECK(ggml_backend_graph_compute(stream.get(), graph) == GGML_STATUS_SUCCESS, "status");
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
        float unfused = 0;
        ggml_backend_tensor_get(rms, &unfused, 0, sizeof(unfused));
        result.push_back(unfused);  // a fused norm is never written
        return result;
    };
    for (const bool used_twice : {false, true}) {
        const auto now = norm(plain_gpus()[0], used_twice), queued = norm(async_gpus()[0], used_twice);
        CHECK(memcmp(now.data(), queued.data(), now.size() * sizeof(float)) == 0, "norm used twice: %d", used_twice);
    }
}

static void an_empty_graph_is_no_error() {
    const backend_ptr stream = new_stream(async_gpus()[0]);
    const context_ptr ctx = make_context(1);
    CHECK(ggml_backend_graph_compute(stream.get(), ggml_new_graph_custom(ctx.get(), 1, false)) == GGML_STATUS_SUCCESS, "status");
}

static void a_tensor_copy_is_ordered_in_both_queues() {
    const auto & gpus = async_gpus();
    vectors on_first(gpus[0], 3), on_second(gpus[1], 3);
    set(on_first[0], 1);
    set(on_second[0], 5);
    const auto nine = four(9);
    gate g;
    const backend_ptr first = new_stream(gpus[0]), second = new_stream(gpus[1]);
    g.close(second, on_second[2]);
    CHECK(add(second, on_second[0], on_second[0], on_second[1]) == GGML_STATUS_SUCCESS, "status");  // reads the target
    ggml_backend_tensor_copy_async(first.get(), second.get(), on_first[0], on_second[0]);
    set_async(first, on_first[0], nine);                                                            // overwrites the source
    CHECK(add_in_place(second, on_second[1], on_second[0]) == GGML_STATUS_SUCCESS, "status");       // reads the copy
    opener::pause();
    g.open();
    ggml_backend_synchronize(second.get());
    CHECK(get(on_second[1]) == 11, "%g", get(on_second[1]));
    ggml_backend_synchronize(first.get());
    CHECK(get(on_first[0]) == 9, "%g", get(on_first[0]));
    ggml_backend_tensor_copy_async(first.get(), first.get(), on_first[0], on_first[1]);
    ggml_backend_synchronize(first.get());
    CHECK(get(on_first[1]) == 9, "within one stream: %g", get(on_first[1]));
}

static void a_copy_from_elsewhere_waits_and_blocks() {
    vectors on_gpu(async_gpus()[0], 2), on_host(ggml_backend_cpu_buffer_type(), 1), on_plain(plain_gpus()[0], 1);
    set(on_host[0], 3);
    set(on_plain[0], 4);
    const backend_ptr gpu = new_stream(async_gpus()[0]), plain = new_stream(plain_gpus()[0]);
    const backend_ptr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_backend_tensor_copy_async(cpu.get(), gpu.get(), on_host[0], on_gpu[0]);
    ggml_backend_tensor_copy_async(plain.get(), gpu.get(), on_plain[0], on_gpu[1]);
    CHECK(get(on_gpu[0]) == 3 && get(on_gpu[1]) == 4, "%g %g", get(on_gpu[0]), get(on_gpu[1]));
}

// A backend whose first graph fails, in the place of the CPU's.
static ggml_backend_t failing_backend() {
    static int graphs = 0;
    ggml_backend_i iface = {};
    iface.free          = [](ggml_backend_t backend) { delete backend; };
    iface.graph_compute = [](ggml_backend_t, ggml_cgraph *) { return graphs++ == 0 ? GGML_STATUS_FAILED : GGML_STATUS_SUCCESS; };
    return new ggml_backend{nullptr, iface, nullptr, nullptr};
}

static void the_next_graph_tells_of_one_that_failed() {
    vectors v(async_gpus()[0], 1);
    const backend_ptr stream(make_vgpu_backend(async_gpus()[0], backend_ptr(failing_backend()), true, 0));
    CHECK(add_in_place(stream, v[0], v[0]) == GGML_STATUS_SUCCESS, "queued");
    ggml_backend_synchronize(stream.get());
    CHECK(add_in_place(stream, v[0], v[0]) == GGML_STATUS_FAILED, "told");
    CHECK(add_in_place(stream, v[0], v[0]) == GGML_STATUS_SUCCESS, "told once");
    ggml_backend_synchronize(stream.get());
    CHECK(add_in_place(stream, v[0], v[0]) == GGML_STATUS_SUCCESS, "nothing more to tell");
}

static void the_number_of_threads_reaches_the_cpu() {
    for (ggml_backend_dev_t dev : {plain_gpus()[0], async_gpus()[0]}) {
        vectors v(dev, 1);
        std::atomic<int> threads{0};
        const backend_ptr stream = new_stream(dev);  // asks for one; the CPU's own default is more
        context_ptr ctx = make_context(8);
        const auto count = [](ggml_tensor *, const ggml_tensor *, int, int n, void * result) { *(std::atomic<int> *) result = n; };
        ggml_tensor * out = ggml_map_custom1_inplace(ctx.get(), v[0], count, GGML_N_TASKS_MAX, &threads);
        bind(out, v[0]);
        CHECK(run(stream, ctx.get(), out) == GGML_STATUS_SUCCESS, "status");
        ggml_backend_synchronize(stream.get());
        CHECK(threads == 1, "%d", threads.load());
    }
}

// with random delays

static void delays_do_not_change_what_events_order() {
    constexpr int ROUNDS = 30;
    ggml_backend_dev_t dev = slow_gpus()[0];
    vectors v(dev, 2);
    std::vector<std::vector<float>> sources;
    for (int i = 1; i <= ROUNDS; i++) {
        sources.push_back(four((float) i));
    }
    const backend_ptr writer = new_stream(dev), reader = new_stream(dev);
    const event_ptr written(ggml_backend_event_new(dev)), used(ggml_backend_event_new(dev));
    for (const auto & source : sources) {
        ggml_backend_event_wait(writer.get(), used.get());
        set_async(writer, v[0], source);
        ggml_backend_event_record(written.get(), writer.get());
        ggml_backend_event_wait(reader.get(), written.get());
        CHECK(add_in_place(reader, v[1], v[0]) == GGML_STATUS_SUCCESS, "status");
        ggml_backend_event_record(used.get(), reader.get());
    }
    ggml_backend_synchronize(reader.get());
    CHECK(get(v[1]) == ROUNDS * (ROUNDS + 1) / 2, "%g", get(v[1]));
}

static void delays_do_not_change_what_copies_order() {
    constexpr int ROUNDS = 30;
    const auto & gpus = slow_gpus();
    vectors on_first(gpus[0], 2), on_second(gpus[1], 2);
    set(on_first[1], 1);
    const backend_ptr first = new_stream(gpus[0]), second = new_stream(gpus[1]);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(add_in_place(first, on_first[0], on_first[1]) == GGML_STATUS_SUCCESS, "status");
        ggml_backend_tensor_copy_async(first.get(), second.get(), on_first[0], on_second[0]);
        CHECK(add_in_place(second, on_second[1], on_second[0]) == GGML_STATUS_SUCCESS, "status");
    }
    ggml_backend_synchronize(second.get());
    CHECK(get(on_second[1]) == ROUNDS * (ROUNDS + 1) / 2, "%g", get(on_second[1]));
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s <folder of libggml-cpu>\n", argv[0]);
        return 2;
    }
    ggml_backend_load_all_from_path(argv[1]);
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        fprintf(stderr, "no CPU backend in %s\n", argv[1]);
        return 2;
    }
    plain_gpus();  // the first two names

    memory_is_capped_counted_and_given_back();
    a_buffer_of_no_size_takes_nothing();
    each_gpu_has_its_own_name_memory_and_buffer_type();
    a_copy_of_a_buffer_type_is_the_same_memory();
    data_goes_between_gpus_and_the_host();
    a_synchronous_gpu_computes_and_has_no_events();
    every_third_allocation_fails();

    a_graph_sees_what_was_set_before_it();
    a_blocking_read_does_not_wait_for_the_queue();
    an_asynchronous_write_reads_its_source_late();
    an_asynchronous_read_writes_its_target_late();
    synchronize_waits_for_all_that_is_queued();
    freeing_a_backend_does_what_is_queued();
    an_event_orders_two_streams();
    without_an_event_two_streams_are_not_ordered();
    the_host_can_wait_for_an_event();
    a_wait_is_for_the_record_made_before_it();
    a_queued_graph_outlives_its_descriptions();
    a_queued_graph_computes_the_same_bits();
    an_empty_graph_is_no_error();
    a_tensor_copy_is_ordered_in_both_queues();
    a_copy_from_elsewhere_waits_and_blocks();
    the_next_graph_tells_of_one_that_failed();
    the_number_of_threads_reaches_the_cpu();

    delays_do_not_change_what_events_order();
    delays_do_not_change_what_copies_order();

    for (const vgpu_stats & memory : vgpu_snapshot()) {
        CHECK(memory.used == 0, "%zu bytes left", (size_t) memory.used);
    }
    return verdict("virtual GPUs");
}
